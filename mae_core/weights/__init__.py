"""Weights in other libraries' layouts, in and out: official MAE, Hugging Face, timm."""

from mae_core.weights.huggingface import hf_config as hf_config
from mae_core.weights.huggingface import mae_to_hf as mae_to_hf
