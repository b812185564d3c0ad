#!/bin/sh
# Every protocol from one encoder, one command each, on three data sets.
# usage: run.sh RUN OTHER OUT CIFAR10 CALTECH101 FASHION
# (folders of the encoder, of one to compare it with and for the results; three data sets)
set -e
ENCODER=$1 AGAINST=$2 OUT=$3
shift 3
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
simclr transfer "$ENCODER" "$2" "$3" --against "$AGAINST" --out "$OUT/transfer-against"
simclr transfer "$ENCODER" "$2" "$3" --protocols '[finetune,scratch]' --lrs '[0.01,0.1]' --decays '[0.0,0.0001]' \
    --steps 150 --crop_area '[0.2,1.0]' --out "$OUT/transfer-grid"
simclr finetune "$ENCODER" "$1" --epochs 3 --crop_area '[0.2,1.0]' --out "$OUT/cifar10-finetune"
simclr finetune "$ENCODER" "$2" --epochs 8 --batch 64 --lr 0.2 --crop_area '[0.2,1.0]' --out "$OUT/caltech101-finetune"
simclr finetune "$ENCODER" "$3" --epochs 3 --crop_area '[0.5,1.0]' --out "$OUT/fashion-mnist-finetune"
