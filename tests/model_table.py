"""One row a registered model: how many parameters the original has, and whether its behaviour is run (one or two a
family; the others differ in depth alone, and ``eval_shape`` sees that)."""

from typing import NamedTuple


class Row(NamedTuple):
    name: str
    parameters: int | None  # with the default number of classes
    source: str
    size: int = 64  # side of the small input
    run: bool = False
    options: dict = {}


TORCHVISION = "torchvision 0.29 meta['num_params']"
TRAINABLE = "torchvision 0.29, weights_backbone=None (batch norm scales counted)"
DETECTRON2 = (
    "the manifest of Detectron2's faster_rcnn_R_50_C4_3x, 33,844,764, and 4 outputs of 2,049 for the background"
)

CLASSIFIERS = [
    Row("squeezenet1_0", 1_248_424, TORCHVISION),
    Row("squeezenet1_1", 1_235_496, TORCHVISION, run=True),
    Row("resnet18", 11_689_512, TORCHVISION, run=True),
    Row("resnet34", 21_797_672, TORCHVISION),
    Row("resnet50", 25_557_032, TORCHVISION),
    Row("resnet101", 44_549_160, TORCHVISION),
    Row("resnet152", 60_192_808, TORCHVISION),
    Row("resnet50_paper", 25_557_032, TORCHVISION),
    Row("resnet101_paper", 44_549_160, TORCHVISION),
    Row("resnet152_paper", 60_192_808, TORCHVISION),
    Row("resnext50_32x4d", 25_028_904, TORCHVISION, run=True),
    Row("resnext101_32x8d", 88_791_336, TORCHVISION),
    Row("resnext101_64x4d", 83_455_272, TORCHVISION),
    Row("wide_resnet50_2", 68_883_240, TORCHVISION),
    Row("wide_resnet101_2", 126_886_696, TORCHVISION),
    Row("shufflenet_v2_x0_5", 1_366_792, TORCHVISION, run=True),
    Row("shufflenet_v2_x1_0", 2_278_604, TORCHVISION),
    Row("shufflenet_v2_x1_5", 3_503_624, TORCHVISION),
    Row("shufflenet_v2_x2_0", 7_393_996, TORCHVISION),
    Row("mobilenet_v2", 3_504_872, TORCHVISION, run=True),
    Row("mnasnet0_5", 2_218_512, TORCHVISION, run=True),
    Row("mnasnet0_75", 3_170_208, TORCHVISION),
    Row("mnasnet1_0", 4_383_312, TORCHVISION),
    Row("mnasnet1_3", 6_282_256, TORCHVISION),
    Row("alexnet", 61_100_840, TORCHVISION),
    Row("alexnet_2012", 60_965_224, "the sum of the layers of BVLC Caffe's bvlc_alexnet"),
    Row("vgg_a", 132_863_336, TORCHVISION),
    Row("vgg_a_lrn", 132_863_336, "table 1, as A"),
    Row("vgg_b", 133_047_848, TORCHVISION),
    Row("vgg_c", 133_638_952, "the sum of the layers of table 1, column C"),
    Row("vgg_d", 138_357_544, TORCHVISION),
    Row("vgg_e", 143_667_240, TORCHVISION),
    Row("vgg11", 132_863_336, TORCHVISION),
    Row("vgg11_bn", 132_868_840, TORCHVISION),
    Row("vgg13", 133_047_848, TORCHVISION),
    Row("vgg13_bn", 133_053_736, TORCHVISION),
    Row("vgg16", 138_357_544, TORCHVISION),
    Row("vgg16_bn", 138_365_992, TORCHVISION),
    Row("vgg19", 143_667_240, TORCHVISION),
    Row("vgg19_bn", 143_678_248, TORCHVISION),
    Row("densenet121", 7_978_856, TORCHVISION),
    Row("densenet161", 28_681_000, TORCHVISION),
    Row("densenet169", 14_149_480, TORCHVISION),
    Row("densenet201", 20_013_928, TORCHVISION),
    Row("googlenet", 13_004_888, "torchvision 0.29, with the auxiliary heads, which meta['num_params'] leaves out"),
    Row("inception_v3", 27_161_264, TORCHVISION, size=75),
]
DETECTORS = [
    Row("fasterrcnn_resnet50_fpn", 41_808_406, TRAINABLE),
    Row("maskrcnn_resnet50_fpn", 44_454_513, TRAINABLE),
    Row("fasterrcnn_resnet50_fpn_v2", 43_712_278, TORCHVISION),
    Row("maskrcnn_resnet50_fpn_v2", 46_359_409, TORCHVISION),
    Row("fasterrcnn_fpn", 41_808_406, TRAINABLE),
    Row("maskrcnn_fpn", 44_454_513, TRAINABLE),
    Row("maskrcnn_small", None, "ours", size=128, run=True, options={"num_classes": 3}),
    Row("fasterrcnn_small", None, "ours", size=128),
    Row("fastrcnn_vgg16", 134_690_729, "VGG-16's convolutions and dense layers of 4,096, 4,096, 21 and 84 outputs"),
    Row("fastrcnn_fpn", 41_214_471, "fasterrcnn_resnet50_fpn without the 593,935 of its RPN"),
    Row("fastrcnn_small", None, "ours", size=128),
    Row("fasterrcnn_resnet50_c4", 33_852_960, DETECTRON2),
    Row("fasterrcnn_resnet50_dc5", 165_638_688, "the sum of the layers; a dense layer of 100,352 inputs holds most"),
    Row("fasterrcnn_c4", 33_852_960, DETECTRON2),
    Row("fasterrcnn_dc5", 165_638_688, "as fasterrcnn_resnet50_dc5"),
    Row("rcnn_alexnet", 57_728_489, "AlexNet's layers but its last, 21 outputs of 4,096 inputs and 84 of 9,216"),
    Row("rcnn_small", None, "ours"),
    Row("retinanet_resnet50_fpn", 34_068_119, TRAINABLE),
    Row("retinanet_resnet50_fpn_v2", 38_198_935, TRAINABLE),
    Row("retinanet_fpn", 38_196_887, "as v2, with biases instead of group norm"),
    Row("retinanet_small", None, "ours", size=128, run=True, options={"num_classes": 3}),
    Row("ssd300_vgg16", 35_641_826, TORCHVISION, size=300),
    Row("ssd512_vgg16", 27_188_676, "ssd300_vgg16 at 20 classes, and the further layer, map and boxes", size=512),
    # Nearly every default box is positive, so that every map learns.
    Row("ssd_small", None, "ours", size=128, run=True, options={"num_classes": 3, "foreground_iou": 0.1}),
    Row("yolo_v1", 271_703_550, "the sum of the layers of figure 3", size=448),
    Row("yolo_small", None, "ours", size=128, run=True, options={"num_classes": 3}),
    Row("multibox_alexnet", 58_916_724, "AlexNet's layers but its last, and 500 outputs of 4,096 inputs", size=224),
    Row("multibox_small", None, "ours", size=128, run=True),
]
AUXILIARY = "torchvision 0.29 meta['num_params'] without the auxiliary head"
SEGMENTERS = [
    Row("fcn_resnet50", 32_957_013, AUXILIARY),
    Row("fcn_resnet101", 51_949_141, AUXILIARY),
    Row("fcn", 32_957_013, AUXILIARY),
    Row("fcn_small", None, "ours", run=True),
    Row("deeplabv3_resnet50", 39_638_869, AUXILIARY),
    Row("deeplabv3_resnet101", 58_630_997, AUXILIARY),
    Row("deeplabv3", 39_638_869, AUXILIARY),
    Row("deeplabv3_small", None, "ours", run=True),
    Row("unet", 31_031_810, "the sum of the layers of figure 1, from three channels", size=188),
    Row("unet_padded", 31_031_810, "as unet"),
    Row("unet_small", None, "ours", run=True),
    Row("unet_encoder", None, "ours"),
    Row("gridnet", 13_181_097, "the sum of the layers of the authors' release"),
    Row("gridnet_small", None, "ours", run=True),
    Row("dilated_vgg16", 134_346_581, "VGG-16's layers, of which the last is 1 x 1 to 21 classes", size=200),
    Row("dilated_small", None, "ours", run=True),
    Row("deconvnet", 251_805_653, "the sum of the layers of the supplement's table", size=224),
    Row("deconvnet_small", None, "ours", run=True),
    Row("patchwise_small", None, "ours", run=True),
]
ROWS = CLASSIFIERS + DETECTORS + SEGMENTERS
