"""Print what each precision does to the loss: mean relative error against fp32 over 40 steps.

Run: make bench-precision
Bar: bf16 and bf16-mixed <= 3e-4. Peers: torch alone under autocast, and bf16 from rounded weights.
One rank, ZeRO-1; width 96, the same images and masks for all.
"""

from __future__ import annotations

import json
import os
import socket

from support.precision_cases import engine_losses, mean_error, torch_losses

from mae_core.train.deepspeed_engine import join_gang, leave_gang


def main() -> None:
    """Train seven times and print the figures as JSON."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    join_gang()
    exact = torch_losses(autocast=False)
    found = {
        "fp32, DeepSpeed": engine_losses("fp32", 1),
        "bf16-mixed": engine_losses("bf16-mixed", 1),
        "torch alone under autocast (peer)": torch_losses(autocast=True),
        "bf16": engine_losses("bf16", 1),
        "bf16, ZeRO-3": engine_losses("bf16", 3),
        "bf16 from rounded weights (peer)": engine_losses("bf16", 1, rounded=True),
    }
    leave_gang()
    print(
        json.dumps(
            {name: f"{mean_error(losses, exact):.1e}" for name, losses in found.items()}, indent=1
        )
    )


if __name__ == "__main__":
    main()
