"""Question: what should be predicted: pixels, normalised pixels, components or tokens?

Command:   mae-study run paper/target --data IMAGENET_FOLDER --address RAY_HEAD:6379
Cost:      about 59 GPU-days by `plan` (6.4e20 FLOPs at an assumed 125 TFLOP/s).
Published: Table 1d (ViT-L), fine-tune / linear probe: pixels 84.9 / 73.5, normalised per patch
           85.4 / 73.9, 96 principal components 84.6 / 72.3, dVAE tokens 85.3 / 71.6.
Small:     small/target
"""

from __future__ import annotations

from mae_core.config import BasisRecipe, TokenizerRecipe
from studies.catalog.evaluations import IMAGENET
from studies.catalog.paper.stages import EVALUATION, evaluations, mae
from studies.spec.cell import Cell, Stage
from studies.spec.study import Study

COMPONENTS = 96
VOCABULARY = 8192


def study() -> Study:
    """ViT-L, 800 epochs, four targets; basis and tokenizer are stages of their own."""
    basis = Stage(name="basis", recipe=BasisRecipe(data=IMAGENET, num_components=COMPONENTS))
    tokenizer = Stage(
        name="tokenizer",
        recipe=TokenizerRecipe(data=IMAGENET, vocabulary=VOCABULARY, precision="bf16-mixed"),
        execution=EVALUATION,
    )
    return Study(
        name="paper/target",
        question="What should be predicted: pixels, normalised pixels, components or tokens?",
        cells=(
            _cell("pixels", mae()),
            _cell("normalised", mae(norm_pix_loss=True)),
            _cell("pca", basis, mae(target="pca", target_dim=COMPONENTS, parents=("basis",))),
            _cell(
                "tokens",
                tokenizer,
                mae(target="tokens", target_dim=VOCABULARY, parents=("tokenizer",)),
            ),
        ),
        axes=("target",),
        published=("MAE paper, Table 1d",),
        notes=(
            "The paper's tokens are DALL-E's, trained on 250 million images; the tokenizer here is "
            "trained on the images of the study, so that nothing else differs.",
            "Reconstruction losses of different targets are not comparable and are not ranked.",
        ),
    )


def _cell(address: str, *stages: Stage) -> Cell:
    return Cell(address=f"{address}/s0", stages=(*stages, *evaluations()))
