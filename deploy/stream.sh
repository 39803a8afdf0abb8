#!/bin/sh
# Flink on this machine, then the streaming job on it: from its newest checkpoint, where there is one that this version reads.
# Arguments go to "beamrec stream"; SIGTERM reaches it, for it replaces this shell.
set -eu
state=${BEAMREC_STATE:-/data}
beamrec services up flink --workspace "$state" --slots "${BEAMREC_SLOTS:-2}"
exec beamrec stream --workspace "$state" --runner flink --resume-or-start --metrics-port 9100 --metrics-host 0.0.0.0 "$@"
