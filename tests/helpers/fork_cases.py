"""A small case for every feed-forward type of the forks: parameters and inputs."""

import torch
from fork_layers import random


def rois():
    regions = random(6, 5).abs() * 30
    regions[:, 0] = torch.arange(6) % 2
    regions[:, 3:] += regions[:, 1:3]
    return regions


X, Y, LONG = random(2, 3, 5, 6), random(2, 3, 5, 6, seed=1), random(2, 8, 6, 10)
VIDEO = random(2, 3, 4, 5, 6)
EIGHT_BITS = (
    "quantization_param { bw_layer_in: 8 bw_layer_out: 8 bw_params: 8 fl_layer_in: 4 fl_layer_out: 4 fl_params: 6 }"
)
MINIFLOAT = "quantization_param { precision: MINIFLOAT mant_bits: 3 exp_bits: 4 }"
MASK = torch.arange(30.0).reshape(5, 6).expand(2, 3, 5, 6).contiguous()

CASES = {
    "PriorBox": ("prior_box_param { min_size: 10 max_size: 20 aspect_ratio: 2 }", X, random(2, 3, 50, 60)),
    "PixelShuffle": ("pixelshuffle_param { upscale_factor: 2 }", LONG),
    "Squeeze": ("squeeze_param { axis: 2 }", random(2, 3, 1, 6)),
    "Add": ("", X, random(3, 1, 1)),
    "Mul": ("", X, random(2, 3, 1, 1)),
    "MatMul": ("", X, random(2, 3, 6, 4)),
    "ResizeBilinear": ("resize_bilinear_param { output_height: 9 output_width: 4 data_format: 'NCHW' }", X),
    "ResizeNearestNeighbor": ("resize_nearest_neighbor_param { output_height: 9 output_width: 4 }", X),
    "UpsampleDarknet": ("upsample_darknet_param { stride: 2 }", X),
    "DepthToSpace": ("depth_to_space_param { block_size: 2 data_format: 'NCHW' }", LONG),
    "SpaceToBatchND": ("space_to_batch_nd_param { block_shape: [2, 3] paddings: [0, 1, 1, 0] }", X),
    "BatchToSpaceND": ("batch_to_space_nd_param { block_shape: [2, 1] crops: [0, 1, 1, 0] }", X),
    "Pad axes": ("pad_param { paddings: [0, 1, 0, 0, 2, 0, 1, 3] }", X),
    "GRIDPooling": ("grid_pooling_param { pooled_h: 2 pooled_w: 3 }", X),
    "Unsqueeze": ("unsqueeze_param { dim: 2 }", X),
    "Pad": ("pad_param { pad_u: 1 pad_d: 2 pad_l: 3 pad_value: 0.5 }", X),
    "Pad mirrored": ("pad_param { pad_u: 1 pad_d: 2 pad_l: 3 pad_type: REFLECT }", X),
    "Pad cut": ("pad_param { pad_u: -1 pad_d: -2 pad_l: -3 pad_r: -1 }", X),
    "BilinearInterpolate": ("bilinear_interpolate_param { dst_h: 9 dst_w: 4 }", X),
    "BilinearInterpolate half": ("bilinear_interpolate_param { scale_factor: 1.7 align_corners: false }", X),
    "MaxUnPool": ("max_unpool_param { dst_h: 6 dst_w: 7 }", X, MASK),
    "BatchNormKyle": ("batch_norm_param { use_alpha_beta: true }", X),
    "BN": ("bn_param { inverse_std: true }", X),
    "Upsample row": ("upsample_param { scale: 3 dims_num: 3 }", X[0]),
    "ReLU6": ("relu6_param { negative_slope: 0.1 threshold: 0.5 }", X),
    "HardSigmoid": ("hardsigmoid_param { alpha: 0.4 }", X),
    "Normalize channels": ("norm_param { channel_shared: false across_spatial: false }", X),
    "Interp": ("interp_param { height: 9 width: 11 }", X),
    "Interp zoom": ("interp_param { zoom_factor: 2 pad_beg: -1 }", X),
    "Interp like": ("", X, LONG),
    "Upsample": ("upsample_param { scale: 2 }", X),
    "Upsample mask": ("upsample_param { scale: 2 }", X, MASK),
    "Resample": ("resample_param { height: 9 width: 11 type: CUBIC }", X),
    "Reorg": ("reorg_param { stride: 2 }", LONG),
    "Reverse": ("reverse_param { axis: 2 }", X),
    "CropCenter": ("crop_center_param { crop_size: 0 crop_size: 1 crop_size: 1 crop_size: 2 }", X),
    "Axpy": ("", random(2, 3, 1, 1), X, Y),
    "Mish": ("", X),
    "Atan": ("", X),
    "PointwiseSpatialAttention": (
        "pointwise_spatial_attention_param { is_softmax: true normalization_factor: 1 }",
        X,
        random(2, 99, 5, 6),
    ),
    "ConvLSTM": (
        "lstm_conv_param { num_output: 4 kernel_size: 3 pad: 1 weight_filler { type: 'gaussian' std: 0.3 } }",
        random(3, 2, 3, 5, 6),
        torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 0.0]]),
    ),
    "ConvLSTM without x": (
        "lstm_debug_param { ignore_x: true disable_hadamard: true } lstm_conv_param { num_output: 4 kernel_size: 1 }",
        random(3, 2, 3, 5, 6),
        torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 0.0]]),
    ),
    "Flip": ("flip_param { flip_height: true }", X),
    "GRN": ("grn_param { bias: 2 }", X),
    "Local": ("local_param { num_output: 4 kernel_size: 3 weight_filler { type: 'xavier' } }", X),
    "Correlation": ("correlation_param { kernel_size: 1 max_displacement: 2 pad: 2 }", X, Y),
    "Correlation1D": ("correlation_param { kernel_size: 1 max_displacement: 2 pad: 2 single_direction: -1 }", X, Y),
    "FlowWarp": ("", X, random(2, 2, 5, 6)),
    "ChannelNorm": ("", X),
    "GenerateAugmentationParameters": ("augmentation_param { crop_height: 3 crop_width: 5 rotate { spread: 1 } }", X),
    "FlowAugmentation": (
        "augmentation_param { crop_height: 3 crop_width: 5 }",
        random(2, 2, 5, 6),
        random(2, 42, 1, 1, scale=0.1),
        random(2, 42, 1, 1, scale=0.1, seed=1),
    ),
    "DataAugmentation": ("augmentation_param { recompute_mean: 9 crop_height: 3 crop_width: 5 }", X),
    "ROIPooling": ("roi_pooling_param { pooled_h: 2 pooled_w: 3 spatial_scale: 0.1 }", LONG, rois()),
    "ROIAlign": ("roi_align_param { pooled_h: 2 pooled_w: 3 spatial_scale: 0.1 roi_end_mode: 1 }", LONG, rois()),
    "PSROIPooling": ("psroi_pooling_param { output_dim: 2 group_size: 2 spatial_scale: 0.1 }", LONG, rois()),
    "ROIWarping": ("roi_warping_param { pooled_h: 2 pooled_w: 3 spatial_scale: 0.1 }", LONG, rois()),
    "MaskPooling": ("", X, random(2, 1, 5, 6)),
    "Nms": ("nms_param { num_parts: 2 max_peaks: 4 threshold: 0.2 }", X),
    "Convolution3D": (
        "convolution3d_param { num_output: 4 kernel_size: 3 kernel_depth: 2 pad: 1 weight_filler { type: 'xavier' } }",
        VIDEO,
    ),
    "Deconvolution3D": (
        "convolution_param { num_output: 4 kernel_size: 3 kernel_depth: 2 stride: 2 weight_filler { type: 'xavier' } }",
        VIDEO,
    ),
    "Convolution nd": (
        "convolution_param { num_output: 4 kernel_shape { dim: 2 dim: 1 dim: 3 } weight_filler { type: 'xavier' } }",
        VIDEO,
    ),
    "Pooling3D": ("pooling_param { pool: MAX kernel_size: 2 kernel_depth: 1 stride: 2 }", VIDEO),
    "Pooling3D windows": ("pooling_param { pool: AVE kernel_size: 2 kernel_depth: 3 stride: 3 pad: 1 }", VIDEO),
    "SpatialTransformer": ("st_param { output_H: 4 output_W: 7 theta_1_2: 0.1 }", X, random(2, 5, scale=0.5)),
    "Resize": ("resize_param { height: 9 width: 11 }", X),
    "Resize zoom": ("resize_param { zoom: 1.5 inter: INTER_CUBIC }", X),
    "ImResize": ("imresize_param { factor: 1.5 }", X),
    "Upsampling": ("upsampling_param { kernel_size: 2 }", X),
    "MaskResize": ("mask_resize_param { output_height: 4 output_width: 13 }", X),
    "Downsample": ("downsample_param { top_height: 3 top_width: 4 }", X),
    "Accum": ("accum_param { size_divisible_by: 4 }", X, LONG),
    "Mean": ("mean_param { operation: SUBTRACT value: 9 value: 8 value: 7 input_scale: 0.5 }", X),
    "RegionYolo": ("region_yolo_param { classes: 3 num: 1 coords: 4 }", LONG),
    "RegionYolo v3": ("region_yolo_param { classes: 3 mask: 1 do_softmax: false }", LONG),
    "Sum": ("", X),
    "MIL": ("mil_param { type: NOR }", random(2, 3, 5, 6).sigmoid()),
    "BatchReduction": ("batch_reduction_param { level: 1 level: 2 reduction_param { axis: 2 operation: MEAN } }", X),
    "Scalar": ("scalar_param { filler { value: 3 } }", X),
    "ChannelScale": ("", X, random(2, 1, 5, 6)),
    "InnerDistance": ("inner_distance_param { num_output: 4 weight_filler { type: 'xavier' } }", X),
    "MarginInnerProduct": (
        "margin_inner_product_param { num_output: 4 type: QUADRUPLE base: 5 weight_filler { type: 'xavier' } }",
        X,
        torch.tensor([1.0, 3.0]),
    ),
    "LargeMarginInnerProduct": (
        "largemargin_inner_product_param { num_output: 4 type: TRIPLE weight_filler { type: 'xavier' } }",
        X,
        torch.tensor([1.0, 3.0]),
    ),
    "LabelSpecificAdd": ("label_specific_add_param { bias: -0.35 }", random(2, 5), torch.tensor([1.0, 3.0])),
    "LabelSpecificMargin": (
        "label_specific_margin_param { margin_base: 30 margin_on_test: true }",
        random(2, 5).tanh(),
        torch.tensor([1.0, 3.0]),
    ),
    "Normalize": ("normalize_param { normalize_type: 'L1' }", X),
    "L2Normalize": ("", X),
    "InnerProduct": ("inner_product_param { num_output: 4 normalize: true weight_filler { type: 'xavier' } }", X),
    "HSwish": ("", X),
    "HSigmoid": ("", X),
    "SELU": ("", X),
    "SELU other": ("selu_param { lambda: 2 alpha: 3 }", X),
    "NegReLU": ("relu_param { negative_slope: 0.1 }", X),
    "SignedSqrt": ("", X),
    "Insanity": ("", X),
    "EltwiseAffine": ("", X),
    "Truncation": ("truncation_param { truncation_max: 0.5 }", X),
    "SpatialDropout": ("", X),
    "Noise": ("noise_param { gaussian_std: 2 }", X),
    "GradientScaler": ("", X),
    "CTCGreedyDecoder": ("", random(5, 2, 3), torch.ones(5, 2)),
    "ReverseTime": ("", random(5, 2, 3), torch.tensor([3.0, 5.0])),
    "ConvolutionRistretto": (
        f"convolution_param {{ num_output: 4 kernel_size: 3 weight_filler {{ type: 'xavier' }} }} {EIGHT_BITS}",
        X,
    ),
    "DeconvolutionRistretto": (
        f"convolution_param {{ num_output: 4 kernel_size: 3 weight_filler {{ type: 'xavier' }} }} {EIGHT_BITS}",
        X,
    ),
    "FcRistretto": (f"inner_product_param {{ num_output: 4 weight_filler {{ type: 'xavier' }} }} {MINIFLOAT}", X),
    "LRNRistretto": (MINIFLOAT, X),
    "DecodeBBox": ("", random(3, 8) / 9, torch.tensor([[0.0, 4, 5, 30, 25], [0, 14, 9, 33, 31], [1, 2, 20, 18, 39]])),
    "Warp": ("", X, random(2, 2, 5, 6)),
    "Warp places": ("warp_param { places: true }", X, 3 * random(2, 2, 5, 6).abs()),
    "Grid": ("", X),
    "NegSquare": ("", X),
    "ExpMax": ("expmax_param { scale: 0.5 }", X),
    "ScaleTanH": ("scale_tanh_param { init_scale: 2 }", X),
    "Sparsify": ("sparsify_param { thre: 0.5 }", X),
    "Norm": ("", X),
    "GuidedDropout": ("guided_dropout_param { type: 'deterministic' guidance_threshold: 0 }", X, random(2, 3, seed=2)),
    "MergeCrop": ("", X, random(2, 3, 8, 11)),
    "RegionPooling": (
        "region_pooling_param { pooled_h: 2 pooled_w: 3 spatial_scale: 0.1 offset: 1 }",
        LONG,
        torch.cat((rois(), rois()[:, 1:] / 2 + 8), 1),
    ),
    "RandomCrop": ("random_crop_param { target_height: 4 target_width: 3 }", random(2, 7, 5, 6)),
    "Warping": ("", X, random(2, 1, 5, 6), random(2, 1, 5, 6, seed=1)),
    "DeformableConvolution": (
        "deformable_convolution_param { num_output: 4 kernel_size: 3 pad: 1 weight_filler { type: 'xavier' } }",
        X,
        random(2, 18, 5, 6),
    ),
}
DETECTIONS = {
    "CompactBilinear": ("compact_bilinear_param { num_output: 8 }", X, LONG[:, :, :5, :6]),  # FFTs: no ONNX
    "BoxGroupOutput": (
        "box_group_output_param { iou_thr: 0.4 min_size: 3 box_group_param { field_h: 9 field_w: 12 stride: 4 } }",
        random(2, 3, 5, 6).softmax(1),
        random(2, 4, 5, 6),
    ),
    "FrcnnOutput": (
        "frcnn_output_param { conf_thr: 0.2 iou_thr: 0.3 }",
        random(3, 4).softmax(1),
        random(3, 16),
        torch.tensor([[0.0, 4, 5, 30, 25], [0, 14, 9, 33, 31], [0, 2, 20, 18, 39]]),
        torch.tensor([[40.0, 50.0]]),
    ),
    "ScaleRoute": (
        "scale_route_param { low_scale: 20 }",
        torch.tensor([[0.0, 4, 5, 30, 25], [0, 14, 9, 33, 31], [0, 2, 20, 18, 29]]),
    ),
    "MultiStageMeanfield": (
        "multi_stage_meanfield_param { theta_alpha: 5 theta_beta: 0.5 theta_gamma: 1.5 num_iterations: 3 }",
        random(2, 5, 4, 6),
        random(2, 5, 4, 6),
        random(2, 3, 4, 6),
    ),
    "DenseCRF": (
        "dense_crf_param { max_iter: 3 pos_w: [3, 1] pos_xy_std: [3, 1.5] bi_w: 4 bi_xy_std: 5 bi_rgb_std: 0.5 }",
        random(2, 5, 4, 6),
        torch.tensor([[50.0, 60], [3, 5]]).reshape(2, 1, 1, 2),
        random(2, 3, 4, 6),
    ),
    "DenseCRF without images": (
        "dense_crf_param { max_iter: 3 pos_w: 3 pos_xy_std: 2 output_probability: false }",
        random(2, 5, 4, 6, scale=10),
        torch.tensor([[4.0, 6], [0, 5]]),
    ),
    "BoxOutput": (
        "box_output_param { field_h: 20 field_w: 30 downsample_rate: 8 fg_thr: -9 iou_thr: 0.3 min_size: 2 }",
        random(2, 6, 5, 6),
    ),
    "DetectionOutput": (
        "detection_output_param { num_classes: 3 confidence_threshold: 0.4 nms_param { nms_threshold: 0.6 eta: 0.9 } }",
        random(2, 48),
        random(2, 36),
        random(1, 2, 48).abs(),
    ),
    "Proposal": (
        "proposal_param { ratio: 1 scale: 2 scale: 4 }",
        random(1, 4, 5, 6),
        random(1, 8, 5, 6),
        random(1, 3) + 70,
    ),
    "YoloDetectionOutput": (
        "yolo_detection_output_param { num_classes: 3 num_box: 1 biases: 2 biases: 3 }",
        random(2, 8, 5, 5),
    ),
    "Yolov3DetectionOutput": (
        "yolov3_detection_output_param { num_classes: 3 num_box: 1 biases: [9, 7] mask: [0, 0] anchors_scale: [8, 9] }",
        random(2, 8, 5, 5),
        random(2, 8, 3, 3),
    ),
}
