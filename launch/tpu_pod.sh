#!/usr/bin/env bash
# Trains on all hosts of a Cloud TPU slice, and resumes after a preemption.
#
#   TPU=my-slice ZONE=us-east5-b launch/tpu_pod.sh \
#     --config configs/bert_base.py --workdir /mnt/runs/bert_base [--config.a.b=c ...]
#
# Edit CODE, the folder with this repository and its .venv on every host (`make install`, then
# `.venv/bin/pip install -e .[tpu]`). --workdir and --config.data.cache_dir must be on storage that
# all hosts share.
#
# To save a checkpoint and stop, run this in another terminal (Ctrl-C ends only the connection):
#   gcloud compute tpus tpu-vm ssh $TPU --zone=$ZONE --worker=all --command='pkill -TERM bertgpt'
# A slice that was deleted must be created again; the same command then resumes.
set -uo pipefail

: "${TPU:?set it to the name of the slice}" "${ZONE:?set it to the zone of the slice}"
CODE=${CODE:-bertgpt}
GIVE_UP="2|65|70|130" # Another attempt would end the same way, or somebody pressed Ctrl-C.
SHORT=600             # An attempt of fewer seconds has made no progress.
MAX_SHORT=5           # The script gives up after this many of them in a row.

command="cd ${CODE} && .venv/bin/bertgpt train --distributed=auto $(printf '%q ' "$@")"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
short=0

while true; do
  start=$(date +%s)
  # The exit code is printed, because gcloud has one exit code of its own for all hosts.
  gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
    --command="$command; code=\$?; echo \"bertgpt ended with code \$code\"; exit \$code" |
    tee "$log"
  status=$?
  [ "$status" -eq 0 ] && exit 0
  final=$(grep -oE "bertgpt ended with code ($GIVE_UP)\$" "$log" | head -n 1)
  [ -n "$final" ] && exit "${final##* }"
  # All other codes, such as 69, 74, 75 or 137, and a broken connection lose no more than the steps
  # since the last checkpoint.
  if [ $(($(date +%s) - start)) -lt "$SHORT" ]; then short=$((short + 1)); else short=0; fi
  if [ "$short" -ge "$MAX_SHORT" ]; then
    echo "$0: gave up after $short attempts in a row of less than $SHORT s" >&2
    exit "$status"
  fi
  sleep 60
done
