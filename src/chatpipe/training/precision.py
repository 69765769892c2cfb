"""Whether a device multiplies bfloat16, or only imitates it."""

import torch


def multiplies_bf16(device: torch.device) -> bool:
    """Whether `device` has instructions for products in bfloat16.

    Without them torch widens each number first: a training step then takes twelve times as long as in float32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        # AMX multiplies bfloat16 on the CPUs that have it; on others oneDNN uses these of AVX512.
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device.type == "mps"


def use_bf16(asked: bool | str, device: torch.device) -> bool:
    """What `bf16: auto` means here; true and false mean themselves."""
    return multiplies_bf16(device) if asked == "auto" else bool(asked)
