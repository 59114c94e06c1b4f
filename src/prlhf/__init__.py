"""Personalised language models from conflicting human feedback (P-RLHF)."""


def __getattr__(name: str) -> str:
    # Looking the version up takes a tenth of the command line's start: only when asked for.
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("prlhf")
        except PackageNotFoundError:  # the source tree on PYTHONPATH, not installed
            return "0+unknown"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
