"""The papers' tables and hyper-parameters, typed from the papers; nothing here comes from the recipes.

One a line: name | epochs | batch | learning rate | weight decay | network | method, its ratios | figures as printed.
"""

NETWORK_EXPANSION = """
# Section 4.2: 240 epochs, batch 128, 0.1 to 0 by a cosine, weight decay 5e-4, alpha_0 = 0.5 and n_g = 5. Table 1.
1/resnet32-cifar10-baseline | 240 | 128 | 0.1 | 5e-4 | 32 | dense | 94.41, 1h 29m, 1.00x
1/resnet32-cifar10-expansion | 240 | 128 | 0.1 | 5e-4 | 32 | width 0.5 in 5 | 94.36, 1h 03m, 1.41x
1/resnet32-cifar100-baseline | 240 | 128 | 0.1 | 5e-4 | 32 | dense | 74.91, 1h 29m, 1.00x
1/resnet32-cifar100-expansion | 240 | 128 | 0.1 | 5e-4 | 32 | width 0.5 in 5 | 74.87, 1h 03m, 1.41x
1/resnet56-cifar10-baseline | 240 | 128 | 0.1 | 5e-4 | 56 | dense | 95.01, 2h 31m, 1.00x
1/resnet56-cifar10-expansion | 240 | 128 | 0.1 | 5e-4 | 56 | width 0.5 in 5 | 94.88, 1h 44m, 1.45x
1/resnet56-cifar100-baseline | 240 | 128 | 0.1 | 5e-4 | 56 | dense | 75.80, 2h 31m, 1.00x
1/resnet56-cifar100-expansion | 240 | 128 | 0.1 | 5e-4 | 56 | width 0.5 in 5 | 75.76, 1h 44m, 1.45x
# Section 4.3: 120 epochs, batch 1024, 0.4, 1e-4, 0.5 in 3; DeiT-B 300, 1024, 1e-3, 5e-2, depth 0.5 in 2. Table 2.
2/resnet50-baseline | 120 | 1024 | 0.4 | 1e-4 | 50 | dense | 76.2, 19h 21m, 1.00x
2/resnet50-net2net | 120 | 1024 | 0.4 | 1e-4 | 50 | net2net | 75.6, 15h 10m, 1.28x
2/resnet50-prunetrain | 90 | 256 | 0.1 | 1e-4 | 50 | lasso 0.2 | 74.8, 1.32x
2/resnet50-expansion | 120 | 1024 | 0.4 | 1e-4 | 50 | width 0.5 in 3 | 75.9, 15h 10m, 1.28x
2/resnet101-baseline | 120 | 1024 | 0.4 | 1e-4 | 101 | dense | 77.4, 31h 01m, 1.00x
2/resnet101-net2net | 120 | 1024 | 0.4 | 1e-4 | 101 | net2net | 76.5, 21h 45m, 1.42x
2/resnet101-expansion | 120 | 1024 | 0.4 | 1e-4 | 101 | width 0.5 in 3 | 77.2, 21h 46m, 1.42x
2/deit-base-baseline | 300 | 1024 | 1e-3 | 5e-2 | base | dense | 81.8, 62h 30m, 1.00x
2/deit-base-bert2bert | 300 | 1024 | 1e-3 | 5e-2 | base | bert2bert | 79.6, 44h 58m, 1.39x
2/deit-base-stackbert | 300 | 1024 | 1e-3 | 5e-2 | base | stackbert | 80.8, 47h 33m, 1.31x
2/deit-base-expansion | 300 | 1024 | 1e-3 | 5e-2 | base | depth 0.5 in 2 | 81.5, 46h 42m, 1.34x
# Section 4.4: 40,000 steps of 16 of 2,975 images (215.1 epochs), 0.1, poly, 1e-4. Table 3.
3/baseline | 215 | 16 | 0.1 | 1e-4 | 101 | dense | 76.9, 21h 59m, 1.00x
3/expansion-3 | 215 | 16 | 0.1 | 1e-4 | 101 | width 0.5 in 3 | 75.1, 16h 49m, 1.30x
3/expansion-2 | 215 | 16 | 0.1 | 1e-4 | 101 | width 0.5 in 2 | 76.4, 16h 50m, 1.30x
# Table 4: ResNet-56 on CIFAR-100, steps of 0.125.
4/baseline | 240 | 128 | 0.1 | 5e-4 | 56 | dense | 75.80, 2h 31m, 1.00x
4/0.875 | 240 | 128 | 0.1 | 5e-4 | 56 | width 0.875 in 2 | 75.81, 2h 08m, 1.18x
4/0.75 | 240 | 128 | 0.1 | 5e-4 | 56 | width 0.75 in 3 | 75.88, 1h 59m, 1.27x
4/0.625 | 240 | 128 | 0.1 | 5e-4 | 56 | width 0.625 in 4 | 75.91, 1h 52m, 1.35x
4/0.5 | 240 | 128 | 0.1 | 5e-4 | 56 | width 0.5 in 5 | 75.76, 1h 44m, 1.45x
4/0.375 | 240 | 128 | 0.1 | 5e-4 | 56 | width 0.375 in 6 | 75.60, 1h 39m, 1.52x
4/0.25 | 240 | 128 | 0.1 | 5e-4 | 56 | width 0.25 in 7 | 75.53, 1h 36m, 1.57x
4/0.125 | 240 | 128 | 0.1 | 5e-4 | 56 | width 0.125 in 8 | 75.31, 1h 32m, 1.64x
# Table 5: DeiT-B on ImageNet.
5/baseline | 300 | 1024 | 1e-3 | 5e-2 | base | dense | 81.8, 62h 30m, 1.00x
5/third-3 | 300 | 1024 | 1e-3 | 5e-2 | base | depth 0.333 in 3 | 80.2, 42h 27m, 1.47x
5/half-3 | 300 | 1024 | 1e-3 | 5e-2 | base | depth 0.5 in 3 | 80.5, 47h 44m, 1.31x
5/half-2 | 300 | 1024 | 1e-3 | 5e-2 | base | depth 0.5 in 2 | 81.5, 46h 42m, 1.34x
5/two-thirds-2 | 300 | 1024 | 1e-3 | 5e-2 | base | depth 0.667 in 2 | 81.8, 52h 30m, 1.19x
# Table 6: ResNet-56 on CIFAR-100.
6/random | 240 | 128 | 0.1 | 5e-4 | 56 | width 0.5 in 5 random | 75.39
6/replicate | 240 | 128 | 0.1 | 5e-4 | 56 | width 0.5 in 5 replicate | 74.67
6/orthogonal | 240 | 128 | 0.1 | 5e-4 | 56 | width 0.5 in 5 orthogonal | 75.76
"""

AUTOPROG = """
# Supplement B: AdamW, 1e-3, batch 1024, 5e-2, cosine, warm-up 5 (DeiT) and 20 (VOLO). Section 5: 4 stages, ratio 0.5.
# Table 2.
2/deit-s-100-original | 100 | 1024 | 1e-3 | 5e-2 | small | dense | +0%, 74.1, 74.6@288
2/deit-s-100-prog | 100 | 1024 | 1e-3 | 5e-2 | small | prog 0.5 in 4 | +53.6%, 72.6, 73.2@288
2/deit-s-100-autoprog | 100 | 1024 | 1e-3 | 5e-2 | small | auto 0.5 in 4 | +40.7%, 74.4, 74.9@288
2/volo-d1-100-original | 100 | 1024 | 1e-3 | 5e-2 | d1 | dense | +0%, 82.6, 83.0@288
2/volo-d1-100-prog | 100 | 1024 | 1e-3 | 5e-2 | d1 | prog 0.5 in 4 | +60.9%, 81.7, 82.1@288
2/volo-d1-100-autoprog-0.5 | 100 | 1024 | 1e-3 | 5e-2 | d1 | auto 0.5 in 4 | +65.6%, 82.8, 83.2@288
2/volo-d1-100-autoprog-0.4 | 100 | 1024 | 1e-3 | 5e-2 | d1 | auto 0.4 in 4 | +85.1%, 82.7, 83.1@288
2/volo-d2-100-original | 100 | 1024 | 1e-3 | 5e-2 | d2 | dense | +0%, 83.6, 84.1@288
2/volo-d2-100-prog | 100 | 1024 | 1e-3 | 5e-2 | d2 | prog 0.5 in 4 | +54.4%, 82.9, 83.3@288
2/volo-d2-100-autoprog | 100 | 1024 | 1e-3 | 5e-2 | d2 | auto 0.5 in 4 | +45.3%, 83.8, 84.2@288
2/deit-tiny-300-original | 300 | 1024 | 1e-3 | 5e-2 | tiny | dense | +0%, 72.2, 72.9@288
2/deit-tiny-300-autoprog | 300 | 1024 | 1e-3 | 5e-2 | tiny | auto 0.5 in 4 | +51.2%, 72.4, 73.0@288
2/deit-s-300-original | 300 | 1024 | 1e-3 | 5e-2 | small | dense | +0%, 79.8, 80.1@288
2/deit-s-300-autoprog | 300 | 1024 | 1e-3 | 5e-2 | small | auto 0.5 in 4 | +42.0%, 79.8, 80.1@288
2/volo-d1-300-original | 300 | 1024 | 1e-3 | 5e-2 | d1 | dense | +0%, 84.2, 84.4@288
2/volo-d1-300-autoprog | 300 | 1024 | 1e-3 | 5e-2 | d1 | auto 0.5 in 4 | +48.9%, 84.3, 84.6@288
2/volo-d2-300-original | 300 | 1024 | 1e-3 | 5e-2 | d2 | dense | +0%, 85.2, 85.1@288
2/volo-d2-300-autoprog | 300 | 1024 | 1e-3 | 5e-2 | d2 | auto 0.5 in 4 | +42.7%, 85.2, 85.2@288
# Table 4: VOLO-D1, 100 epochs, Prog.
4/baseline | 100 | 1024 | 1e-3 | 5e-2 | d1 | dense | 82.53
4/randinit | 100 | 1024 | 1e-3 | 5e-2 | d1 | prog 0.5 in 4 random | 60.61 at growth, 80.02
4/stacking | 100 | 1024 | 1e-3 | 5e-2 | d1 | prog 0.5 in 4 stack | 61.50 at growth, 81.55
4/interpolation | 100 | 1024 | 1e-3 | 5e-2 | d1 | prog 0.5 in 4 interpolate | 61.53 at growth, 81.78
4/identity | 100 | 1024 | 1e-3 | 5e-2 | d1 | prog 0.5 in 4 rezero | 61.04 at growth, 79.32
4/mogrow | 100 | 1024 | 1e-3 | 5e-2 | d1 | prog 0.5 in 4 mogrow | 61.65 at growth, 81.90
# Tables 5 to 8.
5/without-mogrow | 100 | 1024 | 1e-3 | 5e-2 | d1 | auto 0.5 in 4 interpolate | 59.41 at growth, 82.6
5/with-mogrow | 100 | 1024 | 1e-3 | 5e-2 | d1 | auto 0.5 in 4 mogrow | 62.14 at growth, 82.8
6/without-recycling | 100 | 1024 | 1e-3 | 5e-2 | d1 | auto 0.5 in 4 wasteful | +53.3%, 82.8
6/with-recycling | 100 | 1024 | 1e-3 | 5e-2 | d1 | auto 0.5 in 4 | +65.6%, 82.8
7/deit-s-without | 100 | 1024 | 1e-3 | 5e-2 | small | auto 0.5 in 4 from 1 1 1 | +40.7%, 74.4
7/deit-s-with | 100 | 1024 | 1e-3 | 5e-2 | small | auto 0.5 in 4 from 0.5 0 0 | 0.1
7/volo-d1-without | 100 | 1024 | 1e-3 | 5e-2 | d1 | auto 0.4 in 4 from 1 1 1 | +50.9%, 81.5
7/volo-d1-with | 100 | 1024 | 1e-3 | 5e-2 | d1 | auto 0.4 in 4 from 0.5 0.25 0.5 | +85.1%, 82.7
8/original | 100 | 1024 | 1e-3 | 5e-2 | d1 | dense | 82.6
8/supernet | 100 | 1024 | 1e-3 | 5e-2 | d1 | supernet 0.5 | +48.5%, 81.7
8/autoprog | 100 | 1024 | 1e-3 | 5e-2 | d1 | auto 0.5 in 4 | +65.6%, 82.8
# Supplement, Tables I to IX.
I/d0 | 300 | 1024 | 1e-3 | 5e-2 | d0 | auto 0.5 in 4 from 0.5 0 0 | 4.5 to 9, 0 to 0.25, 0 to 0.1
I/d1 | 300 | 1024 | 1e-3 | 5e-2 | d1 | auto 0.5 in 4 from 0.5 0.25 0.5 | 4.5 to 9, 0.0625 to 0.25, 0.1 to 0.2
II/deit-s-100-original | 100 | 1024 | 1e-3 | 5e-2 | small | dense | 4.6G, +0%, 71h, +0%, 74.1, 74.6@288
II/deit-s-100-prog | 100 | 1024 | 1e-3 | 5e-2 | small | prog 0.5 in 4 | 2.4G, +91.6%, 46h, +53.6%, 72.6, 73.2@288
II/deit-s-100-autoprog | 100 | 1024 | 1e-3 | 5e-2 | small | auto 0.5 in 4 | 2.8G, +62.0%, 50h, +40.7%, 74.4, 74.9@288
II/volo-d1-100-original | 100 | 1024 | 1e-3 | 5e-2 | d1 | dense | 6.8G, +0%, 150h, +0%, 82.6, 83.0@288
II/volo-d1-100-prog | 100 | 1024 | 1e-3 | 5e-2 | d1 | prog 0.5 in 4 | 3.7G, +84.7%, 93h, +60.9%, 81.7, 82.1@288
II/volo-d1-100-autoprog-0.5 | 100 | 1024 | 1e-3 | 5e-2 | d1 | auto 0.5 in 4 | 3.3G, +104.2%, 91h, +65.6%, 82.8, 83.2@288
II/volo-d1-100-autoprog-0.4 | 100 | 1024 | 1e-3 | 5e-2 | d1 | auto 0.4 in 4 | 2.9G, +132.2%, 81h, +85.1%, 82.7, 83.1@288
II/volo-d2-100-original | 100 | 1024 | 1e-3 | 5e-2 | d2 | dense | 14.1G, +0%, 277h, +0%, 83.6, 84.1@288
II/volo-d2-100-prog | 100 | 1024 | 1e-3 | 5e-2 | d2 | prog 0.5 in 4 | 7.5G, +87.7%, 180h, +54.4%, 82.9, 83.3@288
II/volo-d2-100-autoprog | 100 | 1024 | 1e-3 | 5e-2 | d2 | auto 0.5 in 4 | 8.3G, +68.7%, 191h, +45.3%, 83.8, 84.2@288
II/deit-tiny-300-original | 300 | 1024 | 1e-3 | 5e-2 | tiny | dense | 1.2G, +0%, 144h, +0%, 72.2, 72.9@288
II/deit-tiny-300-autoprog | 300 | 1024 | 1e-3 | 5e-2 | tiny | auto 0.5 in 4 | 0.7G, +82.1%, 95h, +51.2%, 72.4, 73.0@288
II/deit-s-300-original | 300 | 1024 | 1e-3 | 5e-2 | small | dense | 4.6G, +0%, 213h, +0%, 79.8, 80.1@288
II/deit-s-300-autoprog | 300 | 1024 | 1e-3 | 5e-2 | small | auto 0.5 in 4 | 2.8G, +62.0%, 150h, +42.0%, 79.8, 80.1@288
II/volo-d1-300-original | 300 | 1024 | 1e-3 | 5e-2 | d1 | dense | 6.8G, +0%, 487h, +0%, 84.2, 84.4@288
II/volo-d1-300-autoprog | 300 | 1024 | 1e-3 | 5e-2 | d1 | auto 0.5 in 4 | 4.0G, +68.9%, 327h, +48.9%, 84.3, 84.6@288
II/volo-d2-300-original | 300 | 1024 | 1e-3 | 5e-2 | d2 | dense | 14.1G, +0%, 863h, +0%, 85.2, 85.1@288
II/volo-d2-300-autoprog | 300 | 1024 | 1e-3 | 5e-2 | d2 | auto 0.5 in 4 | 8.8G, +60.7%, 605h, +42.7%, 85.2, 85.2@288
III/baseline | 100 | 1024 | 1e-3 | 5e-2 | d1 | dense | 150.2h, +0%, 82.6
III/progstack | 100 | 1024 | 1e-3 | 5e-2 | d1 | progstack | 135.3h, +11.0%, 82.2
III/progstack-mogrow | 100 | 1024 | 1e-3 | 5e-2 | d1 | progstack mostack | 136.0h, +10.4%, 82.5
III/prog | 100 | 1024 | 1e-3 | 5e-2 | d1 | prog 0.5 in 4 | 93.3h, +60.9%, 81.7
III/autoprog-0.4 | 100 | 1024 | 1e-3 | 5e-2 | d1 | auto 0.4 in 4 | 81.1h, +85.1%, 82.7
IV/original | 100 | 1024 | 1e-3 | 5e-2 | d1 | dense | +0%, 82.6
IV/amp | 100 | 1024 | 1e-3 | 5e-2 | d1 | dense | +74.0%, 82.6
IV/autoprog | 100 | 1024 | 1e-3 | 5e-2 | d1 | auto 0.4 in 4 | +87.5%, 82.7
IV/amp-autoprog | 100 | 1024 | 1e-3 | 5e-2 | d1 | auto 0.4 in 4 | +222.1%, 82.7
V/original | 100 | 1024 | 1e-3 | 5e-2 | d1 | dense | 82.6
V/0.5-3 | 100 | 1024 | 1e-3 | 5e-2 | d1 | auto 0.5 in 3 | +69.1%, 82.6
V/0.5-4 | 100 | 1024 | 1e-3 | 5e-2 | d1 | auto 0.5 in 4 | +65.6%, 82.8
V/0.5-5 | 100 | 1024 | 1e-3 | 5e-2 | d1 | auto 0.5 in 5 | +63.6%, 82.8
V/0.5-50 | 100 | 1024 | 1e-3 | 5e-2 | d1 | auto 0.5 in 50 | +48.5%, 81.7
V/0.4-3 | 100 | 1024 | 1e-3 | 5e-2 | d1 | auto 0.4 in 3 | +90.8%, 82.4
V/0.4-4 | 100 | 1024 | 1e-3 | 5e-2 | d1 | auto 0.4 in 4 | +85.1%, 82.7
V/0.4-5 | 100 | 1024 | 1e-3 | 5e-2 | d1 | auto 0.4 in 5 | +80.4%, 82.7
VI/original | 100 | 1024 | 1e-3 | 5e-2 | d1 | dense | 82.6
VI/supernet | 100 | 1024 | 1e-3 | 5e-2 | d1 | supernet 0.5 | +48.5%, 81.7
VI/autoprog | 100 | 1024 | 1e-3 | 5e-2 | d1 | auto 0.5 in 4 | +65.6%, 82.8
VII/volo-d1-100 | 100 | 1024 | 1e-3 | 5e-2 | d1 | auto 0.4 in 4 | 0.4 1 1 1, 0.4 0.6 0.6 1
VII/volo-d2-300 | 300 | 1024 | 1e-3 | 5e-2 | d2 | auto 0.5 in 4 | 0.83 1 1 1, 0.5 0.67 0.83 1
VIII/baseline | 100 | 1024 | 1e-3 | 5e-2 | d1 | dense | 150.2h, +0%, 82.6
VIII/autoprog-0.4 | 100 | 1024 | 1e-3 | 5e-2 | d1 | auto 0.4 in 4 | 81.1h, +85.1%, 82.7
VIII/retrain | 100 | 1024 | 1e-3 | 5e-2 | d1 | retrain | 81.4h, +84.5%, 82.7
# Table IX: the paper says 100 epochs, and nothing else of how it trains the ResNet-50.
IX/original | 100 | - | - | - | 50 | dense | 77.3
IX/autoprog | 100 | - | - | - | 50 | retrain | +56.9%, 77.3
# Table 3 (section 5.2): fine-tuning, as DeiT has it; not typed further here.
3/original-cifar10 | - | - | - | - | small | dense | 99.0
3/original-cifar100 | - | - | - | - | small | dense | 89.5
3/autoprog-cifar10 | - | - | - | - | small | dense | 99.0
3/autoprog-cifar100 | - | - | - | - | small | dense | 89.7
"""

PRUNETRAIN = """
# Section 5: batch 128 and 182 epochs (CIFAR), 256 and 90 (ImageNet), 0.1; section 5.3: an interval of 10, of 5 epochs.
# The rest as He et al.: weight decay 1e-4; a tenth after 32,000, 48,000 of 64,000 steps, after 30, 60 of 90 epochs.
# Table 1, gap (fine-tuned), training FLOPs (time), inference FLOPs.
1/cifar10-resnet32-baseline | 182 | 128 | 0.1 | 1e-4 | 32 | dense | 93.6
1/cifar10-resnet32 | 182 | 128 | 0.1 | 1e-4 | 32 | lasso every 10 | -1.8%, 47% (81%), 34%
1/cifar10-resnet50-baseline | 182 | 128 | 0.1 | 1e-4 | 50 | dense | 94.2
1/cifar10-resnet50 | 182 | 128 | 0.1 | 1e-4 | 50 | lasso every 10 | -1.1%, 50% (81%), 30%
1/cifar10-vgg11-baseline | 182 | 128 | 0.1 | 1e-4 | vgg11 | dense | 92.1
1/cifar10-vgg11 | 182 | 128 | 0.1 | 1e-4 | vgg11 | lasso every 10 | -0.7%, 43% (57%), 35%
1/cifar10-vgg13-baseline | 182 | 128 | 0.1 | 1e-4 | vgg13 | dense | 93.9
1/cifar10-vgg13 | 182 | 128 | 0.1 | 1e-4 | vgg13 | lasso every 10 | -0.6%, 44% (57%), 37%
1/cifar100-resnet32-baseline | 182 | 128 | 0.1 | 1e-4 | 32 | dense | 71.0
1/cifar100-resnet32 | 182 | 128 | 0.1 | 1e-4 | 32 | lasso every 10 | -1.4%, 68% (88%), 54%
1/cifar100-resnet50-baseline | 182 | 128 | 0.1 | 1e-4 | 50 | dense | 73.1
1/cifar100-resnet50 | 182 | 128 | 0.1 | 1e-4 | 50 | lasso every 10 | -0.7%, 47% (66%), 31%
1/cifar100-vgg11-baseline | 182 | 128 | 0.1 | 1e-4 | vgg11 | dense | 70.6
1/cifar100-vgg11 | 182 | 128 | 0.1 | 1e-4 | vgg11 | lasso every 10 | -1.3%, 53% (74%), 43%
1/cifar100-vgg13-baseline | 182 | 128 | 0.1 | 1e-4 | vgg13 | dense | 74.1
1/cifar100-vgg13 | 182 | 128 | 0.1 | 1e-4 | vgg13 | lasso every 10 | -1.1%, 58% (67%), 48%
1/imagenet-resnet50-baseline | 90 | 256 | 0.1 | 1e-4 | 50 | dense | 76.2
1/imagenet-resnet50-0.25 | 90 | 256 | 0.1 | 1e-4 | 50 | lasso 0.25 every 5 | -1.87%, 60% (71%, 66%), 47%
1/imagenet-resnet50-0.2 | 90 | 256 | 0.1 | 1e-4 | 50 | lasso 0.2 every 5 | -1.47%, 70% (76%, 72%), 56%
1/imagenet-resnet50-0.1 | 90 | 256 | 0.1 | 1e-4 | 50 | lasso 0.1 every 5 | -0.24%, 97% (98%, 98%), 88%
# Its fine-tuning column, in brackets; the paper does not say for how many epochs.
1/imagenet-resnet50-0.25-finetuned | - | 256 | 0.1 | 1e-4 | 50 | lasso 0.25 every 5 | -1.58%
1/imagenet-resnet50-0.2-finetuned | - | 256 | 0.1 | 1e-4 | 50 | lasso 0.2 every 5 | -1.16%
1/imagenet-resnet50-0.1-finetuned | - | 256 | 0.1 | 1e-4 | 50 | lasso 0.1 every 5 | +0.20%
# Table 2: speedup at 10 and at 100 images.
2/cifar100-resnet32 | 182 | 128 | 0.1 | 1e-4 | 32 | lasso every 10 | 1.34x, 1.33x
2/cifar100-resnet50 | 182 | 128 | 0.1 | 1e-4 | 50 | lasso every 10 | 1.18x, 1.51x
2/cifar100-vgg11 | 182 | 128 | 0.1 | 1e-4 | vgg11 | lasso every 10 | 1.44x, 1.54x
2/cifar100-vgg13 | 182 | 128 | 0.1 | 1e-4 | vgg13 | lasso every 10 | 1.38x, 1.64x
2/imagenet-resnet50-0.25 | 90 | 256 | 0.1 | 1e-4 | 50 | lasso 0.25 every 5 | 1.53x, 1.55x
2/imagenet-resnet50-0.2 | 90 | 256 | 0.1 | 1e-4 | 50 | lasso 0.2 every 5 | 1.36x, 1.36x
2/imagenet-resnet50-0.1 | 90 | 256 | 0.1 | 1e-4 | 50 | lasso 0.1 every 5 | 1.08x, 1.05x
3/baseline | 182 | 128 | 0.1 | 1e-4 | 56 | dense | 94.5
3/prunetrain | 182 | 128 | 0.1 | 1e-4 | 56 | lasso every 10 | -0.5%, 34%, 18
# Table 4: time that is left (it prints reductions of 34, 43, 29 (34) and 34 (39) %), inference FLOPs, gap.
4/cifar100-naive | 182 | 128 | 0.1 | 1e-4 | 50 | lasso every 10 | 66%, 31%, -0.7%
4/cifar100-adjusted | 182 | 128 | 0.1 | 1e-4 | 50 | lasso every 10 and batch | 57%, 34%, -0.4%
4/imagenet-naive | 90 | 256 | 0.1 | 1e-4 | 50 | lasso 0.25 every 5 | 71% (66%), 47.4%, -1.87%
4/imagenet-adjusted | 90 | 256 | 0.1 | 1e-4 | 50 | lasso 0.25 every 5 and batch | 66% (61%), 46.4%, -1.91%
"""
