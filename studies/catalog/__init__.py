"""The studies that ship, by name. Each module has `def study() -> Study`."""

PAPER = (
    "mask_ratio",
    "decoder",
    "mask_token",
    "target",
    "augmentation",
    "mask_sampling",
    "duration",
    "wall_clock",
    "comparison",
    "partial_finetune",
    "robustness",
    "transfer",
    "unique_data",
    "few_labels",
    "lr_by_size",
    "calibration",
    "control_patch",
    "control_finetune",
)
"""One per table or figure of the MAE paper, and what its programme lacks."""

SMALL = (
    "mask_ratio",
    "decoder",
    "mask_token",
    "target",
    "augmentation",
    "mask_sampling",
    "duration",
    "wall_clock",
    "comparison",
    "partial_finetune",
    "robustness",
    "transfer",
    "unique_data",
    "few_labels",
    "lr_by_size",
)
"""Sisters of the paper's that two cores finish in minutes, on digits or on `--data FOLDER`."""

CATALOG: dict[str, str] = {
    "quickstart": "studies.catalog.quickstart",
    "paper/size_by_duration": "studies.catalog.paper_size_by_duration",
    "scaling/vit_ladder": "studies.catalog.scaling_vit_ladder",
    "small/images": "studies.catalog.small_images",
    "small/mae_or_scratch": "studies.catalog.small.mae_or_scratch",
    **{f"paper/{name}": f"studies.catalog.paper.{name}" for name in PAPER},
    **{f"small/{name}": f"studies.catalog.small.{name}" for name in SMALL},
}
