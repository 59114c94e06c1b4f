"""Stage `base_model`: the frozen base language model, pinned, in one directory."""

from typing import Final

from prlhf.hub import resolve_model
from prlhf.infra.io import atomic_path
from prlhf.infra.progress import say
from prlhf.params import ModelParams
from prlhf.stages.paths import BASE

PARAMS: Final = ("model",)


def run(*, model: ModelParams) -> None:
    """Write `models/base`.

    Raises:
        UserError: see `prlhf.hub.resolve_model`.
    """
    with atomic_path(BASE, directory=True) as directory:
        record = resolve_model(model, directory)
    pinned = record.get("commit") or record.get("sha256")
    say(f"base_model: {record['name']} ({record['kind']}, {str(pinned)[:12]})")
