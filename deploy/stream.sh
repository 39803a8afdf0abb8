#!/bin/sh
# Flink on this machine, then the streaming job on it: from its newest checkpoint, where it has run before.
# Arguments go to "beamrec stream"; SIGTERM reaches it, for it replaces this shell.
set -eu
state=${BEAMREC_STATE:-/data}
beamrec services up flink --workspace "$state" --slots "${BEAMREC_SLOTS:-2}"
set -- stream --workspace "$state" --runner flink --metrics-port 9100 --metrics-host 0.0.0.0 "$@"
if [ -e "$state/streams/stream.json" ]; then
  exec beamrec "$@" --resume
fi
exec beamrec "$@"
