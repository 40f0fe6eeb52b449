#!/usr/bin/env bash
# The same command on every worker of a TPU pod slice; they find one another by the pod's metadata.
#
#   bash launch/tpu_pod.sh NAME ZONE experiments/quickstart.py --runs-dir /mnt/runs [options of `llm-jax train`]
#
# --runs-dir is a folder that all workers mount: NFS, or a bucket by gcsfuse. A checkpoint becomes whole by renaming its
# folder, so the bucket needs a hierarchical namespace, or gcsfuse a --rename-dir-limit above the files of a checkpoint.
# Expects the clone in ~/llm_jax on every worker, with `python3 -m pip install -e '.[tpu]'` done there.
set -euo pipefail
name="${1:?name of the TPU}" zone="${2:?zone of the TPU}"
shift 2
exec gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker all \
    --command "cd llm_jax && python3 -m llm_jax train $(printf '%q ' "$@")"
