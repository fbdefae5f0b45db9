"""Weights in other libraries' layouts, in and out: official MAE, Hugging Face, timm.

`import_weights` reads another library's checkpoint, `write_layout` writes one. A layout is a
table of names (`naming.py`); `layout.py` converts by any of them, key by key.
"""

from mae_core.weights.files import load_own as load_own
from mae_core.weights.files import save_own as save_own
from mae_core.weights.files import tensors_digest as tensors_digest
from mae_core.weights.files import write_layout as write_layout
from mae_core.weights.foreign import Conversion as Conversion
from mae_core.weights.foreign import import_weights as import_weights
from mae_core.weights.infer import Hints as Hints
from mae_core.weights.infer import assumed_heads as assumed_heads
from mae_core.weights.naming import LAYOUTS as LAYOUTS
from mae_core.weights.naming import LayoutName as LayoutName
from mae_core.weights.network import Network as Network
