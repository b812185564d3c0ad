#!/bin/sh
# Few labels on CIFAR-10: fine-tuned against supervised from scratch, the same network, loop and crops; three seeds.
# usage: run.sh ENCODER CIFAR10 OUT   (RUN folder, data, folder for the runs)
set -e
tune() { # kind fraction epochs rate seed measure folder
    simclr finetune "$ENCODER" "$DATA" --fraction "$2" --epochs "$3" --lr "$4" --seed "$5" --measure "$6" --out "$7" \
        --batch "$8" --crop_area '[0.2,1.0]' $1 2>/dev/null | tail -n 2
}
ENCODER=$1 DATA=$2 OUT=$3
for setting in "0.01 60 64" "0.1 30 128" "1 10 256"; do
    set -- $setting
    for kind in pretrained scratch; do
        flag=$([ $kind = scratch ] && echo "--from_scratch=true" || true)
        # the rate is chosen for each on a tenth of the training images, at seed 0 (at 100 %: the one chosen at 10 %)
        if [ "$1" != 1 ]; then
            for lr in 0.02 0.05 0.2 0.5; do
                tune "$flag" $1 $2 $lr 0 held-out "$OUT/choose-$kind-$1-$lr" $3
            done
            best=$(for lr in 0.02 0.05 0.2 0.5; do
                python3 -c "import json;print(json.load(open('$OUT/choose-$kind-$1-$lr/result.json'))['top1'], $lr)"
            done | sort -g | tail -n 1 | cut -d' ' -f2)
            echo $best > "$OUT/best-$kind"
        fi
        for seed in 0 1 2; do
            tune "$flag" $1 $2 $(cat "$OUT/best-$kind") $seed test "$OUT/$kind-$1-$seed" $3
        done
    done
done
