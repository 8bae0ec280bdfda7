"""The fields of layers that caffe-port does not follow, and what each does.

Every field of proto/caffe.proto is read by the code that computes its layer, unless it is listed here. A field that is
neither in the schema nor here is unknown, and may do anything. Who judges a net by these tables is
:mod:`caffe_port.definition.fields`; ``python docs/make_fields.py`` counts them.

A key is ``Message.field``, ``*.field`` for the field of that name in any message, or ``Type:field`` for the field in
layers of that type alone; the last one goes first. A wire number may stand in place of a name.

Sources: the layers' code in the fork that is named; a reason without one follows from what the field is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from caffe_port.formats.message import Field, Message

HARMLESS: Final = "harmless"
"""Changes no number."""
TRAINING: Final = "training"
"""Concerns initial values and updates only: a net with its weights computes the same."""
FEED: Final = "feed"
"""Changes what a data layer hands to the net, and nothing in the net."""
PRECISION: Final = "precision"
"""Computes the same with fewer bits, where the fork's other engine computes in float32, as caffe-port does."""
CHANGES: Final = "changes"
"""Changes what the layer computes."""


@dataclass(frozen=True)
class Rule:
    """What a field does that is not followed: its effect, and words for the user."""

    effect: str
    words: str


def rule_of(type_: str, message: str, name: str) -> Rule | None:
    """The rule for a field of a message in a layer of a type; None where no table has it."""
    keys = (f"{type_}:{name}", f"{message}.{name}", f"*.{name}")
    return next((_RULES[key] for key in keys if key in _RULES), None)


def is_neutral(field: Field, value: Any) -> bool:
    """Whether a value is the one that a layer has without the field."""
    if field.repeated:
        return not len(value)
    if isinstance(value, Message):
        return False
    return bool(value == field.default)


def _table(effect: str, entries: dict[str, str]) -> dict[str, Rule]:
    """Rules by key; a key may join several fields of one message: ``Message.a b c``."""
    rules = {}
    for keys, words in entries.items():
        head, mark, names = keys.partition(":" if ":" in keys else ".")
        for name in names.split():
            rules[f"{head}{mark}{name}"] = Rule(effect, words)
    return rules


_HARMLESS: Final = {
    # Where, with which library and with how many threads
    "*.engine": "which library computes the layer",
    "*.cudnn_math_override": "which of cuDNN's units compute",
    "*.use_gpu_transform": "where images are prepared",
    "*.force_nd_im2col": "which of two equal algorithms convolves",
    "*.conv_algos_override": "which of cuDNN's algorithms convolves",
    "*.cudnn_convolution_algo_seeker": "how cuDNN's algorithm is chosen",
    "*.conv_algorithm": "which of Intel's algorithms convolves",
    "DataParameter.threads parser_threads disk_reader_threads huge_video_dataset": "how many threads read",
    "DataParameter.verbose": "what is printed",
    "NetParameter.richness": "how much memory cuDNN may take (Cysu/caffe)",
    "ConvolutionParameter.conv_mode dump_parameter dump_activation parameter_sparsity_pattern_histogram": "which of "
    "SkimCaffe's algorithms convolves, and what it writes",
    "InnerProductParameter.gemm_mode spmdm_transpose_in spmdm_transpose_out dump_parameter dump_activation": "which of "
    "SkimCaffe's algorithms multiplies, and what it writes",
    "*.prefetch": "how many batches are read ahead",
    "DataParameter.cache": "whether records stay in memory",
    "WindowDataParameter.cache_images": "whether images stay in memory",
    "NetParameter.default_conv_algos_override default_cudnn_math_override reduce_buckets": "how a GPU computes",
    "NetParameter.engine": "which library computes the layers",
    "LayerParameter.multinode": "how several machines share the work",
    "NetParameter.multinode compile_net_state": "how several machines share the work",
    "LayerParameter.mn_grad_compress_param": "how several machines share the work",
    "*.do_all_reduce": "how several machines share the work",
    "BatchNorm:use_alpha_beta": "BatchNormKyle alone reads it (brocolli-caffe)",
    "PythonParameter.share_in_parallel": "whether several GPUs share the layer",
    # The type of numbers; caffe-port computes in float32
    "LayerParameter.12 13 14": "the precision; float32 is used",  # Caffe's OpenCL branch
    "LayerParameter.forward_type backward_type forward_math backward_math": "the precision; float32 is used",
    "NetParameter.default_forward_type default_backward_type default_forward_math default_backward_math": "the "
    "precision; float32 is used",
    "SolverParameter.data_type": "the precision; float32 is used",  # Caffe's OpenCL branch
    # What is printed, drawn or written beside the net
    "*.debug_info": "what is printed",
    "LayerParameter.debug": "what is printed",
    "*.show_data": "what is displayed",
    "NetParameter.profile_info profile_iter profile_warmup": "what is measured and printed",
    "*.visualize": "whether detections are drawn",
    "*.visualize_threshold": "which detections are drawn",
    "*.save_file": "where a film of the detections is written",
    "*.save_output_param": "where the detections are written beside the top",
    "*.label_map_file": "the names of the classes, for what is written",
    "DataAugmentation:write_augmented write_mean": "what is written beside the top",
    "DataAugmentation:num mode bottomwidth bottomheight": "for GenerateAugmentationParameters",
    "GenerateAugmentationParameters:write_augmented write_mean max_multiplier recompute_mean mean_per_pixel mean "
    "chromatic_eigvec num": "for DataAugmentation",
    "FlowAugmentation:write_augmented write_mean max_multiplier augment_during_test recompute_mean mean_per_pixel mean "
    "mode bottomwidth bottomheight num chromatic_eigvec mirror translate rotate zoom squeeze translate_x translate_y "
    "gamma brightness contrast color lmult_pow lmult_mult lmult_add sat_pow sat_mult sat_add col_pow col_mult col_add "
    "ladd_pow ladd_mult ladd_add col_rotate fog_amount fog_size motion_blur_angle motion_blur_size shadow_angle "
    "shadow_distance shadow_strength noise": "for DataAugmentation",
    "QuantizationParameter.scale_in scale_out scale_params": "Intel's scales; Ristretto's code has none",
    "QuantizationParameter.rounding_scheme": "STOCHASTIC is for training",
    "LayerParameter.sigmoid_param tanh_param": "which library computes the layer",
    "V1LayerParameter.sigmoid_param tanh_param": "which library computes the layer",
    "HDF5OutputParameter.file_name": "where the bottoms are written",
    "BlobProto.diff double_diff raw_diff raw_diff_type": "gradients of the last update",
    "Datum.record_id": "the number of a record",
    "DataParameter.backend": "the kind of the database, which it says itself",
    "SolverParameter.test_compute_loss debug_display": "what is printed",
    "SolverParameter.solver_mode device_id layer_wise_reduce per_parameter_reduce": "where the net is trained",
    "LabelSpecificMarginParameter.margin_on_test": "nothing: the layer's own source does not read it in TEST",
    "SolverParameter.engine": "which library trains",
    "SolverParameter.device": "where the net is trained",  # Caffe's OpenCL branch
    "SolverParameter.richness": "how much memory cuDNN may take (yjxiong)",
    "SolverParameter.group_id": "how several machines share the work (yjxiong)",
    "SolverParameter.save_loss show_realtime_loss": "what is written and displayed (CC4.0)",
    "SolverParameter.log_avg_gradient_norm gan_solver": "what is printed",
    "SolverParameter.test_before_snapshot": "when the net is tested",
    "SolverParameter.snapshot_diff snapshot_format store_blobs_in_old_format": "what a snapshot holds",
    # What has no reader in the code of its own fork
    "ConvolutionParameter.negative_slope": "counts with relu: true alone (Intel)",
    "InnerProductParameter.negative_slope": "counts with relu: true alone (Intel)",
    "Im2col:num_output bias_term group weight_filler bias_filler": "Im2col looks at the window alone",
    "Im2col:relu negative_slope": "Im2col looks at the window alone",
    "*.filter_group": "cuts the outputs into parts that all see every channel (C3D)",
    "YoloDetectionOutputParameter.side": "the size of the bottom counts",
    "ImResizeParameter.start_scale scale_gap": "the scales of the program around the net (OpenPose)",
    "NmsParameter.num_peak": "max_peaks counts (OpenPose)",
    "NoiseLayerParameter.bias": "noise is added in training alone",
    "BoxOutput:cls_aware": "FrcnnOutput alone reads it (Cascade R-CNN)",
    "BoxGroupOutput:cls_aware": "FrcnnOutput alone reads it (Cascade R-CNN)",
    "DecodeBBox:cls_aware": "FrcnnOutput alone reads it (Cascade R-CNN)",
    "ROIPooling:corners": "ROIAlign alone reads it, and no file has it",
    "RoiPooling:corners": "ROIAlign alone reads it, and no file has it",
    "MultiStageMeanfieldParameter.compatibility_mode threshold spatial_filter_weight bilateral_filter_weight "
    "forced_spatial_filter_weight forced_bilateral_filter_weight": "CRF-RNN's own code does not read it",
    "ProposalParameter.output_actual_rois_num": "the number of rows, which the top has anyhow",
    "RegionYoloParameter.anchors": "the reader of the boxes needs them, the layer does not",
    "PriorBoxClustered:denser_prior_boxes": "each box has its own width and height",
    "PriorBoxClustered:flip": "each box has its own width and height",
    "PriorBoxClustered:fixed_size fixed_ratio density": "each box has its own width and height",
    "PriorBoxClustered:faceboxes tf keras": "each box has its own width and height",
    "UpsampleParameter.stride_w": "stride counts in both directions",
    "BatchNormKyle:scale_bias scale_filler bias_filler": "the layer has no scale and shift of NVIDIA's",
    "ConvolutionDepthwise:num_output group": "the channels of the bottom count",
    "PassThroughParameter.num_output": "the size of the bottom counts",
    "LSTMConvolutionParameter.kernel_h kernel_w pad_h pad_w stride_h stride_w": "kernel_size, pad, stride count",
    "LSTMConvolutionParameter.axis": "the channels are axis 2, whatever is given",
    "ConvLSTM:num_output weight_filler bias_filler": "those of lstm_conv_param count",
    "LossParameter.pre_fixed_normalizer": "counts with PRE_FIXED alone, which is refused",
    "InfogainLoss:weight_by_label_freqs class_weighting": "SoftmaxWithLoss alone weights classes (SegNet)",
    "SigmoidCrossEntropyLoss:weight_by_label_freqs class_weighting": "SoftmaxWithLoss alone weights classes (SegNet)",
    "MultiBoxLoss:weight_by_label_freqs class_weighting": "SoftmaxWithLoss alone weights classes (SegNet)",
    "MultiBoxLoss:ignore_label": "the layer finds its labels itself (SSD)",
    "LabelSpecificAdd:transform_test": "labels are read in training alone",
    "BatchNormParameter.use_weight_bias bias_term": "whether there is a scale and a shift, which the blobs say (Intel)",
    # What only training looks at, and caffe-port's training computes alike
    "EltwiseParameter.stable_prod_grad": "how a gradient is rounded",
    "LstmParameter.clipping_threshold": "bounds gradients",
    "SpatialTransformerParameter.to_compute_dU": "whether a gradient is computed",
    "ChannelNormalizeParameter.fix_gradient": "scales a gradient",
    "ChannelNormalizeParameter.bp_norm": "whether a gradient is computed",
    "*.random_seed": "which random numbers are drawn",
    "LayerParameter.reshape_every_iter": "when shapes are computed",
    "*.emit_constraint": "which boxes go with an image",
    "NetParameter.force_backward": "whether gradients reach the inputs",
    "NetParameter.eltwise_mem_sharing": "whether a sum and its first bottom share memory (NVIDIA)",
}

_TRAINING: Final = {
    "NetParameter.global_grad_scale global_grad_scale_adaptive": "the factor of gradients in half precision",
    "LayerParameter.blobs_lr weight_decay blob_share_mode": "the old form of param, which layers of this form ignore",
    "LayerParameter.propagate_down": "stops gradients",
    "GradientScalerParameter.max_iter": "in how many iterations the factor grows",
    "LayerParameter.connectivity_mode": "which weights stay zero (SkimCaffe)",
    "Sparsify:coef": "the factor of an L1 penalty on the top",
    "ParamSpec.l1_mult": "the factor of an L1 penalty",
    "BatchNormParameter.stats_batch_size": "of how many images at a time training takes the statistics (Intel)",
    "NetParameter.bn_stats_batch_size": "of how many images at a time training takes the statistics (Intel)",
    "BatchNormParameter.update_global_stats": "whether training updates the statistics",
    "SegAccuracyParameter.output_label": "what a measure writes (PSPNet)",
    "BatchNormParameter.filler": "the initial scale (Intel)",
    "FillerParameter.file diag_val values": "initial values",
    "MultiStageMeanfieldParameter.spatial_filter_weights_str bilateral_filter_weights_str": "initial values",
}

_FEED: Final = {
    # TransformationParameter
    "TransformationParameter.resize_param": "resizes images (SSD)",
    "TransformationParameter.noise_param distort_param expand_param": "varies images at random (SSD)",
    "TransformationParameter.crop_h crop_w crop_width crop_height": "crops images (SSD, PSPNet, DeepLab)",
    "TransformationParameter.random_resize_param random_aspect_ratio_param": "resizes images at random (Intel)",
    "TransformationParameter.flow": "treats images as optical flow (Intel)",
    "TransformationParameter.bgr2rgb": "swaps the channels (Intel)",
    "TransformationParameter.cvt_bgr2rgb": "swaps the channels (Cambricon)",
    "TransformationParameter.img_rand_resize_lower img_rand_resize_upper": "resizes images at random (NVIDIA)",
    "TransformationParameter.rand_rel_ar_lower rand_rel_ar_upper rand_wscale_lower rand_wscale_upper "
    "rand_hscale_lower rand_hscale_upper rand_lscale_lower rand_lscale_upper": "varies images at random (NVIDIA)",
    "TransformationParameter.interpolation_algo_down interpolation_algo_up": "how images are resized (NVIDIA)",
    "TransformationParameter.rand_resize rand_rotate gaussian_blur rand_aspect_ratio rotate90n": "varies images at "
    "random (PSPNet)",
    "TransformationParameter.label_scalefactor label_offset": "changes labels (PSPNet)",
    "TransformationParameter.scale_factors": "resizes images at random (DeepLab)",
    "DetectNetAugmentationParameter.resize_param noise_param distort_param expand_param": "varies images at random "
    "(NVIDIA)",
    "ResizeParameter.prob resize_mode height_scale width_scale pad_mode pad_value interp_mode": "resizes images (SSD)",
    # data layers
    "DataParameter.force_encoded_color": "decodes images in color",
    "DataParameter.preselection_file preselection_label range_start range_end limit_samples block_size": "which "
    "records are read (FlowNet 2)",
    "DataParameter.rand_permute rand_permute_order rand_permute_seed permute_every_iter": "the order of the records "
    "(FlowNet 2)",
    "DataParameter.slice_point encoding subtract": "what the channels of a record hold (FlowNet 2)",
    "DataParameter.side": "the grid of labels (YOLO)",
    "ImageDataParameter.label_type ignore_label is_rsdata rs_channels": "what labels are (DeepLab)",
    "ImageDataParameter.min_height min_width": "resizes images (Intel)",
    "ImageDataParameter.h_offset w_offset h_crop w_crop": "crops images (SegNet)",
    "ImageDataParameter.nn_interp label_divide_factor": "changes labels (SegNet)",
    "ImageDataParameter.face_transform max_shear_ratio max_aspect_ratio max_rotate_angle min_random_scale "
    "max_random_scale max_random_shift face_mirror face_point_num": "varies images at random (happynear)",
    "ImageDataParameter.use_image use_temporal_jitter": "which frames of a video are read (C3D)",
    "WindowDataParameter.fg_threshold bg_threshold fg_fraction context_pad crop_mode": "how windows are drawn (R-CNN)",
}

_PRECISION: Final = {
    "LayerParameter.quantization_param": "8 bits in Intel's engine MKLDNN; its engine CAFFE does not read it"
}

_CHANGES: Final = {
    # Of the schema
    "AutoCrop:dimsize": "the size to crop to",
    "Crop:dimsize": "the size to crop to (OpenVINO)",
    "BatchReductionParameter.pos": "what is added to the levels",
    "ScaleParameter.min_value max_value": "bounds the factors (happynear)",
    "CorrelationParameter.do_abs": "takes absolute values",
    "Correlation:single_direction": "compares in one direction alone",
    "ChannelDropout:sample_weights_test scale_train": "how dropout scales",
    "SpatialDropout:sample_weights_test scale_train": "how dropout scales",
    "ELUParameter.lambda": "multiplies the top (NVIDIA's SELU)",
    "EltwiseParameter.coeff_blob": "the last bottom holds the coefficients (LRCN)",
    "ROIAlign:spatial_scale_h spatial_scale_w": "one scale for each direction",
    "LossParameter.label_smoothing": "softens the labels (Intel)",
    "Pooling3D:pad_r pad_b": "pads each side by its own number",
    "ReLU6Parameter.n": "where the layer stops",
    "ResampleParameter.factor": "the size of the top",
    "SpatialTransformerParameter.de_transform": "inverts the transformation",
    "UpsampleParameter.nearestneighbor_mode": "repeats values (Cambricon)",
    "V0LayerParameter.new_num new_channels new_height new_width": "the shape of a type that Caffe 1.0 does not have",
    "BlobProto.half_data half_diff": "numbers in half precision, as NVIDIA once wrote them",
    "SolverParameter.max_epoch epoch_size test_epoch_size test_interval_epoch": "counts in epochs (NVIDIA)",
    "SolverParameter.disabled_update": "leaves the weights as they are (Intel)",
    "SolverParameter.clip_weights clamp_weights_lower clamp_weights_upper": "bounds the weights (happynear)",
    # Of forks, outside the schema
    "ReLUParameter.upper_limit": "where the layer stops",
    "NegReLU:relu6 maximum": "where the layer stops",
    "EltwiseParameter.swap_xy": "exchanges the axes",
    "EltwiseParameter.relu": "takes the ReLU of the top",
    "PriorBoxParameter.additional_y_offset": "a second box for each, half a cell below (OpenCV)",
    "MultiBoxLossParameter.use_polygon": "boxes are polygons (TextBoxes++)",
    "AnnotatedDataParameter.use_polygon": "boxes are polygons (TextBoxes++)",
    "*.do_state_prediction": "predicts a state for each box",
}

_RULES: Final[dict[str, Rule]] = {
    **_table(HARMLESS, _HARMLESS),
    **_table(TRAINING, _TRAINING),
    **_table(FEED, _FEED),
    **_table(PRECISION, _PRECISION),
    **_table(CHANGES, _CHANGES),
}


def listed() -> dict[str, Rule]:
    """Every rule by its key."""
    return dict(_RULES)
