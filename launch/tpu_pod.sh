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
PREEMPTED=75 # A checkpoint is saved; the same command resumes.

command="cd ${CODE} && .venv/bin/bertgpt train --distributed=auto $(printf '%q ' "$@")"
log=$(mktemp)
trap 'rm -f "$log"' EXIT

while true; do
  # The exit code is printed, because gcloud has one exit code of its own for all hosts.
  gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
    --command="$command; code=\$?; echo \"bertgpt ended with code \$code\"; exit \$code" |
    tee "$log"
  status=$?
  grep -q "bertgpt ended with code $PREEMPTED\$" "$log" || exit "$status"
  sleep 60
done
