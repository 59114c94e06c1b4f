"""Prefect runs the pipeline that dvc.yaml declares: the flows, and what they are made of.

Not part of the installed package: flows run from the repository root, where dvc.yaml is.
"""

import os
from collections.abc import Mapping

PROXIES = frozenset({"all_proxy", "http_proxy", "https_proxy"})
"""Variables that name a proxy, in lower case; programs take them in either case."""


def without_proxy_to_loopback(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that exempt this machine from the proxies that are set; none without a proxy."""
    if PROXIES.isdisjoint(name.lower() for name in environment):
        return {}
    # Programs read either of the two; the lower-case one counts where both are there.
    given = environment.get("no_proxy", environment.get("NO_PROXY", ""))
    hosts = [host.strip() for host in given.split(",") if host.strip()]
    hosts += [host for host in ("127.0.0.1", "localhost", "::1") if host not in hosts]
    return dict.fromkeys(("NO_PROXY", "no_proxy"), ",".join(hosts))


# Before Prefect is imported: nothing leaves the machine. A value that the user has set stays.
ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}
for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
# The server that a run starts for itself is on this machine.
os.environ.update(without_proxy_to_loopback(os.environ))
