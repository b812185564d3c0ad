#!/bin/sh
# Every protocol from one encoder, one command each, on three data sets.
# usage: run.sh RUN OUT CIFAR10 CALTECH101 FASHION   (folder of the encoder, folder for the results, three data sets)
set -e
ENCODER=$1 OUT=$2
shift 2
for data in "$@"; do
    name=$(basename "${data#*:}" .npz)
    simclr knn "$ENCODER" "$data" --k 20 --out "$OUT/$name-knn.json"
    simclr linear "$ENCODER" "$data" --out "$OUT/$name-linear.json"
    simclr linear "$ENCODER" "$data" --layer all --baselines false --out "$OUT/$name-layers.json"
    simclr linear "$ENCODER" "$data" --protocol sgd --baselines false --out "$OUT/$name-sgd.json"
    simclr linear "$ENCODER" "$data" --protocol bank --epochs 30 --baselines false --out "$OUT/$name-bank.json"
    simclr information "$ENCODER" "$data" --layers all --images 6000 --epochs 20 --out "$OUT/$name-information.json"
    simclr health "$ENCODER" "$data" --out "$OUT/$name-health.json"
    simclr robustness "$ENCODER" "$data" --images 1000 --out "$OUT/$name-robustness.json"
done
simclr transfer "$ENCODER" "$@" --out "$OUT/transfer"
simclr finetune "$ENCODER" "$2" --epochs 8 --batch 64 --lr 0.2 --crop_area '[0.2,1.0]' --out "$OUT/caltech101-finetune"
