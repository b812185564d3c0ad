#!/bin/sh
# Few labels on CIFAR-10: fine-tuned against supervised from scratch, the same network, loop and crops; three seeds.
# usage: run.sh RUN DATA OUT   (folder of the encoder, cifar10:DIR, folder for the runs)
set -e
ENCODER=$1 DATA=$2 OUT=$3
top1() { python3 -c "import json; print(json.load(open('$OUT/$1/result.json'))['top1'])"; }
run() { # folder kind share epochs batch rate seed measure
    flag=$([ "$2" = scratch ] && echo "--from_scratch=true" || true)
    simclr finetune "$ENCODER" "$DATA" --out "$OUT/$1" --fraction "$3" --epochs "$4" --batch "$5" --lr "$6" --seed "$7" \
        --measure "$8" --crop_area '[0.2,1.0]' $flag > "$OUT/$1.log" 2>&1 || { tail -n 1 "$OUT/$1.log"; exit 1; }
    echo "$1 $6 $(top1 $1)"
}
# share of the labels, epochs, batch, rates to choose from. The rate of each kind is chosen on a tenth of the training
# images at seed 0; all labels use the rates chosen for a tenth of them.
while read -r share epochs batch rates; do
    for kind in pretrained scratch; do
        for rate in $rates; do
            run choose-$kind-$share-$rate $kind $share $epochs $batch $rate 0 held-out
        done
        if [ -n "$rates" ]; then
            for rate in $rates; do echo "$(top1 choose-$kind-$share-$rate) $rate"; done |
                sort -g | tail -n 1 | cut -d' ' -f2 > "$OUT/rate-$kind"
        fi
        for seed in 0 1 2; do
            run $kind-$share-$seed $kind $share $epochs $batch "$(cat "$OUT/rate-$kind")" $seed test
        done
    done
done <<PLAN
0.01 60 64 0.02 0.05 0.2 0.5 1.0
0.1 15 128 0.05 0.2 0.5 1.0
1 3 256
PLAN
