#!/bin/sh
# Pretraining with streamed images of 224 px, batch 256 and 2 workers where /dev/shm has 64 MB (Docker's default) and
# 1 MB. Needs root for a mount namespace of its own; the machine's /dev/shm is not changed.
#   sh benchmarks/reliability/shm.sh [PYTHON]
set -eu
python=${1:-python3}
for size in ${SIZES:-64m 1m}; do
    unshare --mount sh -euc '
        mount -t tmpfs -o size='"$size"' tmpfs /dev/shm
        out=$(mktemp -d)
        timeout 500 '"$python"' -m simclr pretrain sample --out "$out/run" --encoder simclr_resnet18 \
            --encoder_options "{width: 0.125}" --views.size 224 --batch 256 --epochs 0.06 --warmup_epochs 0 \
            --machine.storage streamed --machine.workers 2 --machine.accelerator cpu \
            >"$out/log" 2>&1 || { tail -5 "$out/log"; exit 1; }
        test -f "$out/run/encoder.safetensors"
        echo "/dev/shm of '"$size"': batches of 256 images of 224 px, $(df -k --output=used /dev/shm | tail -1) kB left in it"
        rm -rf "$out"'
done
