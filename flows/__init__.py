"""Prefect runs the pipeline that dvc.yaml declares: the flows, and what they are made of.

Not part of the installed package: flows run from the repository root, where dvc.yaml is.
"""

import os

# Before Prefect is imported: nothing leaves the machine. A value that the user has set stays.
ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # Without a server, Prefect starts one for the run and waits 20 s for it: a busy machine takes
    # longer.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300",
}
for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
