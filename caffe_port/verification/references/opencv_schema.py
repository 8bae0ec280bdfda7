"""The fields of OpenCV's own schema, in messages that forks of Caffe gave more: its importer knows no others.

A test reads them from OpenCV's binary, and fails where another message of proto/caffe.proto outgrows OpenCV's.
"""

from __future__ import annotations

from typing import Final

_FIELDS: Final = {
    "BatchNormParameter": "eps moving_average_fraction scale_bias use_global_stats",
    "ConcatParameter": "axis concat_dim",
    "ConvolutionParameter": "axis bias_filler bias_term dilation engine force_nd_im2col group kernel_h "
    "kernel_size kernel_w num_output pad pad_h pad_w stride stride_h stride_w "
    "weight_filler",
    "DetectionOutputParameter": "background_label_id clip code_type confidence_threshold keep_top_k "
    "nms_param normalized_bbox num_classes save_output_param share_location "
    "variance_encoded_in_target",
    "DropoutParameter": "dropout_ratio scale_train",
    "EmbedParameter": "bias_filler bias_term input_dim num_output weight_filler",
    "InnerProductParameter": "axis bias_filler bias_term num_output transpose weight_filler",
    "PSROIPoolingParameter": "group_size output_dim spatial_scale",
    "PoolingParameter": "ceil_mode engine global_pooling kernel_h kernel_size kernel_w pad pad_h "
    "pad_w pool stride stride_h stride_w",
    "PriorBoxParameter": "aspect_ratio clip flip height img_h img_size img_w max_size min_size offset "
    "offset_h offset_w step step_h step_w variance width",
    "ProposalParameter": "base_size feat_stride min_size nms_thresh post_nms_topn pre_nms_topn ratio scale",
    "ROIPoolingParameter": "pooled_h pooled_w spatial_scale",
    "ReLUParameter": "engine negative_slope",
    "ReshapeParameter": "axis num_axes shape",
}

KNOWN: Final = {message: frozenset(fields.split()) for message, fields in _FIELDS.items()}
"""Fields by message."""
