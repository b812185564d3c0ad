#!/bin/sh
# usage: run.sh TEACHERS DATA OUT   (TEACHERS-SEED are fine-tuned run folders; labelled data set; folder for the runs)
set -e
TEACHERS=$1 DATA=$2 OUT=$3
for seed in 0 1 2; do
    simclr distill "$TEACHERS-$seed" "$DATA" --encoder simclr_resnet10 --encoder_options '{width: 0.125}' --batch 256 \
        --epochs 10 --warmup_epochs 1 --crop_area '[0.2,1.0]' --seed $seed --out "$OUT/distilled-$seed"
    # the same small network by the same labels alone
    simclr finetune "$OUT/distilled-$seed" "$DATA" --from_scratch true --fraction 0.01 --lr 1.0 --batch 64 --epochs 60 \
        --crop_area '[0.2,1.0]' --seed $seed --out "$OUT/labels-only-$seed"
done
for seed in 0 1 2; do
    simclr distill "$TEACHERS-$seed" "$DATA" --batch 256 --epochs 10 --warmup_epochs 1 --crop_area '[0.2,1.0]' \
        --seed $seed --out "$OUT/self-$seed"
done
