"""Field numbers on which forks of Caffe disagree.

A message has one field per number. Where two forks took the same number for different things, proto/caffe.proto gives
it to the more widely used one, and the other gets a placeholder in :data:`PLACEHOLDERS`, which never occurs in a file.
That is enough for text, which names its fields. A binary reader has four ways to tell the forks apart:

1. The layer's type: :data:`WIRE_NUMBERS`. It comes first, because the bytes of one message may not parse as another.
   With the type, the number may also tell the fork, and so what the numbers inside mean: :data:`LAYOUTS`.
2. The wire type: :data:`BY_WIRE_TYPE`, when a value cannot belong to the field that has its number.
3. The value: :data:`NOT_A_BOOL`.
4. The whole net: :mod:`caffe_port.formats.dialects`.

A message of a fork that does not parse as the field that has its number is an unknown field.

Anything that cannot be told apart is read as the schema says, which is ambiguous in these cases only:

- ConvolutionParameter 18 and 19 are DeepLab's ``hole_h`` and ``hole_w``; elsewhere ``dilation`` and NVIDIA's choice of
  algorithm.
- DropoutParameter 2 is SegNet's ``sample_weights_test``, R-FCN's ``scale_train`` or NVIDIA's ``engine``.
- BNParameter 3 and 4 are ``var_eps`` and ``moving_average``; yjxiong's 3 is ``momentum``.
- LossParameter.normalization 3 is NONE; R-FCN's and Intel's 3 is PRE_FIXED, and their NONE is 4.
- What a data layer reads, and how: TransformationParameter 8 to 18, ImageDataParameter 13 to 21.

Sources: caffe.proto of the repositories listed at the head of proto/caffe.proto.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

DIALECTS: Final = ("caffe", "brocolli")
"""What ``--dialect`` may say; see :mod:`caffe_port.formats.dialects`."""

#: Numbers of proto/caffe.proto that never occur in a file.
PLACEHOLDERS: Final = range(600_000, 700_000)

#: The highest number of a field of LayerParameter in Caffe 1.0; those above belong to forks.
CAFFES_LAST_NUMBER: Final = 146

#: Layer type -> {number in the file: field of LayerParameter}.
WIRE_NUMBERS: Final[dict[str, dict[int, str]]] = {
    # Batch normalization in one layer. Own number: SegNet's and ENet's 45.
    "BN": dict.fromkeys((137, 139, 152, 160, 201, 222, 1111), "bn_param"),
    # PSPNet and yjxiong; happynear; yjxiong's layout under the numbers of others, 1111 brocolli-caffe's
    "Scale": {160: "scale_param"},  # PSPNet
    "Bias": {161: "bias_param"},  # PSPNet
    # Sizes
    "Upsample": dict.fromkeys((137, 147, 149, 150, 160, 211, 500), "upsample_param"),
    # SegNet; ENet; darknet2caffe; MobileNet-YOLO; Ascend; X2Paddle; brocolli-caffe
    "Resize": {251: "resize_param"},  # brocolli-caffe
    "BilinearInterpolate": {505: "bilinear_interpolate_param"},  # brocolli-caffe, as are the next four
    "MaxUnPool": {506: "max_unpool_param"},
    "Unsqueeze": {502: "unsqueeze_param"},
    "Pad": {504: "pad_param", 224: "pad_param"},  # brocolli-caffe; Synopsys
    "Interp": dict.fromkeys((143, 150, 153, 166), "interp_param"),  # DeepLab v2; pytorch2caffe; its port; caffe2onnx
    "CropCenter": {149: "crop_center_param"},  # nagadomi/caffe, for waifu2x
    "Accum": {160: "accum_param"},  # FlowNet 2
    "DenseImageData": {138: "dense_image_data_param"},  # SegNet
    "DenseBlock": {147: "denseblock_param"},  # caffe_ocr
    # Synopsys
    "UpsampleDarknet": {209: "upsample_darknet_param"},
    "DepthToSpace": {208: "depth_to_space_param"},
    "ResizeNearestNeighbor": {210: "resize_nearest_neighbor_param"},
    "ResizeBilinear": {226: "resize_bilinear_param"},
    "SpaceToBatchND": {236: "space_to_batch_nd_param"},
    "BatchToSpaceND": {235: "batch_to_space_nd_param"},
    "Squeeze": {241: "squeeze_param"},
    "MatMul": {263: "matmul_param"},
    "Mul": {278: "mul_param"},
    # Segmentation
    "SegAccuracy": {154: "seg_accuracy_param", 164: "seg_accuracy_param"},  # DeepLab v2; PSPNet
    "DenseCRF": {152: "dense_crf_param"},
    "DomainTransform": {147: "domain_transform_param"},
    "AdaptiveBiasChannel": {148: "adaptive_bias_channel_param"},
    "BiasChannel": {149: "bias_channel_param"},
    "MatRead": {151: "mat_read_param"},
    "MatWrite": {155: "mat_write_param"},
    "SpatialDropout": {155: "spatial_dropout_param"},  # Intel
    # Detection
    "ROIPooling": dict.fromkeys((143, 147, 150, 154, 161), "roi_pooling_param"),
    # happynear; others' Fast R-CNN; yjxiong and PSPNet; Intel; Ascend
    "ROIAlign": {154: "roi_align_param"},  # Ascend
    "PSROIPooling": dict.fromkeys((149, 153, 207), "psroi_pooling_param"),  # others' R-FCN; Intel; Ascend
    "SmoothL1Loss": {148: "smooth_l1_loss_param"},
    "SmoothL1LossOHEM": {148: "smooth_l1_loss_param"},
    "BoxAnnotatorOHEM": {150: "box_annotator_ohem_param", 152: "box_annotator_ohem_param"},
    "PriorBoxClustered": {203: "prior_box_clustered_param"},  # OpenVINO
    "Proposal": {201: "proposal_param", 202: "proposal_param", 1000: "proposal_in_pixels_param"},
    # PVANet, Ascend; brocolli-caffe
    "BoxOutput": {151: "box_output_param"},  # MS-CNN
    "NormalizeBBox": {149: "normalize_bbox_param"},
    # YOLO
    "RegionLoss": {209: "region_loss_param"},
    "Reorg": dict.fromkeys((149, 155, 159), "reorg_param"),  # MobileNet-YOLO; Ascend; yeahkun
    "YoloV3Loss": {199: "yolo_v3_loss_param"},
    "Mish": {150: "mish_param"},
    # Building blocks
    "ShuffleChannel": {159: "shuffle_channel_param", 213: "shuffle_channel_param"},  # Ascend; X2Paddle
    "PixelShuffle": {507: "pixelshuffle_param"},  # brocolli-caffe
    "ReLU6": dict.fromkeys((211, 216, 2060, 503), "relu6_param"),  # MobileNet-YOLO; OpenVINO; Ascend; brocolli-caffe
    "HardSigmoid": {501: "hardsigmoid_param", 258: "hard_sigmoid_param"},  # brocolli-caffe; Synopsys
    "Axpy": {151: "axpy_param", 210: "axpy_param"},  # an empty message
    "Reverse": {147: "reverse_param", 157: "reverse_param"},  # ChWick; Ascend
    "SpatialTransformer": {150: "st_param"},
    "STLoss": {151: "st_loss_param"},
    "PowerFile": {152: "power_file_param"},
    "LocLoss": {153: "loc_loss_param"},
    # FlowNet 2
    "DataAugmentation": {148: "coeff_schedule_param", 149: "augmentation_param"},
    "GenerateAugmentationParameters": {148: "coeff_schedule_param", 149: "augmentation_param"},
    "BlackAugmentation": {161: "black_augmentation_param"},
    # Faces and metric learning
    "CenterLoss": {147: "center_loss_param", 149: "center_loss_param"},  # caffe-face, with and without 1.0's layers
    "MarginInnerProduct": {147: "margin_inner_product_param", 151: "margin_inner_product_param"},  # SphereFace
    "LargeMarginInnerProduct": {147: "largemargin_inner_product_param"},
    "TripletLoss": dict.fromkeys((136, 137, 142, 147), "triplet_loss_param"),
    "FocalLoss": dict.fromkeys((145, 151), "focal_loss_param"),
    "Local": {140: "local_param"},  # happynear, as are the next four
    "Insanity": {141: "insanity_param"},
    "EltwiseAffine": {145: "eltwise_affine_param"},
    "SubRegion": {146: "sub_region_param"},
    "Noise": {147: "noise_param"},
    # CTC, OpenPose
    "CTCLoss": {148: "ctc_loss_param"},
    "CTCDecoder": {149: "ctc_decoder_param"},
    "CTCGreedyDecoder": {149: "ctc_decoder_param", 158: "ctc_decoder_param"},  # caffe_ocr's 158
    "ImResize": {147: "imresize_param"},
    "Nms": {148: "nms_param"},
    # Intel
    "MnActivation": {151: "mn_activation_param"},
    "ContinuationIndicator": {200: "continuation_indicator_param", 153: "continuation_indicator_param"},  # CC4.0's 153
    # Quantization
    "ConvolutionRistretto": {148: "quantization_param"},
    "DeconvolutionRistretto": {148: "quantization_param"},
    "FcRistretto": {148: "quantization_param"},
    "LRNRistretto": {148: "quantization_param"},
    "DataRistretto": {148: "quantization_param"},
    "Convolution": {158: "quantization_param"},  # Intel, as are the rest
    "InnerProduct": {158: "quantization_param"},
    "Pooling": {158: "quantization_param"},
    "ReLU": {158: "quantization_param"},
    "Eltwise": {158: "quantization_param"},
    "Concat": {158: "quantization_param"},
}


class Layout(NamedTuple):
    """How a fork numbers the fields of a layer's message."""

    numbers: dict[int, str]
    """Number in the file -> field."""
    states: dict[str, Any] = {}  # noqa: RUF012 (a default of a NamedTuple)
    """Fields with the fork's defaults: a message has them after it was read."""
    tells: str = ""
    """The field that only this fork has: a message with it is written under this number."""


_YJXIONG = {1: "slope_filler", 2: "bias_filler", 3: "momentum", 4: "eps", 5: "frozen", 6: "engine"}

#: (layer type, number of its message in the file) -> the layout.
LAYOUTS: Final[dict[tuple[str, int], Layout]] = {
    # brocolli-caffe
    ("Upsample", 500): Layout({1: "scale", 2: "dims_num"}, {"dims_num": 4, "scale": 1}, "dims_num"),
    # Synopsys
    ("Pad", 224): Layout({1: "paddings", 2: "constant_values"}, {}, "paddings"),
    # brocolli-caffe
    ("BN", 1111): Layout(_YJXIONG, {"inverse_std": True}, "inverse_std"),
    ("BatchNormKyle", 139): Layout({9: "use_alpha_beta", 10: "do_all_reduce", 8: "bias_filler", 7: "filler"}),
    ("ReLU6", 503): Layout({2: "threshold"}, {"threshold": 6.0}, "threshold"),
    ("Resize", 251): Layout(
        {1: "height", 2: "width", 3: "is_pyramid_test", 4: "out_height_scale", 5: "out_width_scale"}
    ),
    # yjxiong's
    **{("BN", number): Layout(_YJXIONG) for number in (152, 160, 201, 222)},
}

#: Message type -> fields of the schema that say which fork's meaning holds, and that no program of Caffe's reads.
NOT_IN_FILES: Final[dict[str, frozenset[str]]] = {
    "BNParameter": frozenset({"inverse_std"}),
    "EmbedParameter": frozenset({"last_axis"}),
    "ProposalParameter": frozenset({"scale_in_pixels"}),
}

#: Message type -> {(number in the file, wire type in the file): field}. Applies when the field with that number in
#: proto/caffe.proto has another wire type, or there is no such field. Wire types: 0 varint, 1 eight bytes, 2 length,
#: 5 four bytes.
BY_WIRE_TYPE: Final[dict[str, dict[tuple[int, int], str]]] = {
    "BlobProto": {
        # NVIDIA/caffe before 0.16's final numbers
        (10, 2): "half_data",
        (11, 2): "half_diff",
        (110, 0): "raw_data_type",
        (111, 0): "raw_diff_type",
        (112, 2): "raw_data",
        (113, 2): "raw_diff",
    },
    "LayerParameter": {
        # NVIDIA/caffe
        (145, 0): "forward_type",
        (146, 0): "backward_type",
        (147, 0): "forward_math",
        (148, 0): "backward_math",
        (149, 0): "debug",
        (150, 0): "cudnn_math_override",
    },
    "NetParameter": {(9, 0): "profile_info", (10, 0): "profile_iter"},
    "BNParameter": {
        (3, 0): "bn_mode",  # SegNet
        (4, 5): "eps",  # yjxiong
        (5, 0): "frozen",  # yjxiong
    },
    "BatchNormParameter": {
        # Intel
        (5, 0): "use_weight_bias",
        (6, 0): "bias_term",
        (7, 2): "filler",
        (8, 2): "bias_filler",
    },
    "ConvolutionParameter": {
        (20, 5): "negative_slope",  # Intel
        **{(26 + k, 0): name for k, name in enumerate(("pad_l", "pad_r", "pad_t", "pad_b"))},  # Synopsys
    },
    "PoolingParameter": {(16 + k, 0): name for k, name in enumerate(("pad_l", "pad_r", "pad_t", "pad_b"))},  # Synopsys
    "PriorBoxParameter": {(14, 0): "denser_prior_boxes"},  # TextBoxes++
    "ROIPoolingParameter": {(4, 0): "pooled_size"},  # Intel
    "TransformationParameter": {(8, 0): "use_gpu_transform", (9, 0): "random_seed"},  # NVIDIA/caffe
}

#: Message type -> {number in the file: field}, for an integer above 1 where proto/caffe.proto has a bool.
NOT_A_BOOL: Final[dict[str, dict[int, str]]] = {
    "ConvolutionParameter": {17: "hole"}  # DeepLab, PSPNet: the dilation; Caffe's 17 is force_nd_im2col
}

#: Message type -> {name in a fork's text: the same field here}.
TEXT_ALIASES: Final[dict[str, dict[str, str]]] = {
    "Yolov3DetectionOutputParameter": {"masks": "mask", "num_boxes": "num_box"}  # MobileNet-YOLO's earlier form
}

#: Message type -> fields of forks that look like typos for fields of proto/caffe.proto, but are not.
TEXT_FIELDS: Final[dict[str, frozenset[str]]] = {
    kind: frozenset(names.split())
    for kind, names in {
        # The third axis of volumes
        "ConvolutionParameter": "dilation_h dilation_w kernel_d kernel_l kernel_t pad_d pad_l pad_t stride_d stride_l "
        "stride_t",
        "PoolingParameter": "kernel_d kernel_l kernel_t pad_d pad_l pad_t stride_d stride_l stride_t",
        # How images are read
        "TransformationParameter": "crop flip mean_files mean_values mirror_y scale_factor scales",
        "DataParameter": "batch_sizes random_skip sources",
        "ImageDataParameter": "new_heights new_widths sources",
        # How a net is trained
        "BatchNormParameter": "use_local_stats",
        "LossParameter": "class_weight class_weights ignore_labels",
        "FillerParameter": "values",
        "ParamSpec": "l1_mult",
        "SolverParameter": "larc larc_eta larc_policy weight_decay_policy weight_decay_power",
    }.items()
}
