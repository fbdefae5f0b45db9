"""The studies that ship, by name. Each module has `def study() -> Study`."""

CATALOG: dict[str, str] = {
    "quickstart": "studies.catalog.quickstart",
    "paper/size_by_duration": "studies.catalog.paper_size_by_duration",
    "scaling/vit_ladder": "studies.catalog.scaling_vit_ladder",
    "small/images": "studies.catalog.small_images",
}
