"""Named links, devices, targets and prices. docs/simulator.md has the sources at length, and how sure each one is.

A preset is a mapping of a section's keys, and nothing else: whatever stands beside ``preset`` goes before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

Preset = Mapping[str, Any]

LINKS: Final[dict[str, Preset]] = {
    # No link: both on one machine.
    "local": {},
    # One region, wired: within what cloud providers show between zones and to a city nearby.
    "metro": {"rtt_ms": 10, "jitter_ms": 1},
    # Home Wi-Fi with fibre behind it. The radio hop: Pei et al., INFOCOM 2016: median above 20 ms on a campus.
    # Radio power: Huang et al., MobiSys 2012 (Wi-Fi base 0.133 W).
    "wifi": {
        "rtt_ms": 30, "jitter_ms": 15, "jitter": "exponential", "rate_up_mbit": 50, "rate_down_mbit": 200,
        "loss": 0.001, "radio_w": 0.13,
    },
    # The same, crowded: Pei et al.: 10% of packets above 100 ms in the radio hop.
    "wifi-busy": {
        "rtt_ms": 60, "jitter_ms": 50, "jitter": "exponential", "rate_up_mbit": 10, "rate_down_mbit": 40,
        "loss": 0.01, "radio_w": 0.13,
    },
    # LTE: Huang et al., MobiSys 2012: median round trip 70 ms, 6 Mbit/s up, 13 down, 260 ms from idle to connected
    # after 11.6 s of silence, 1.29 W base power while connected.
    "lte": {
        "rtt_ms": 70, "jitter_ms": 30, "jitter": "exponential", "rate_up_mbit": 6, "rate_down_mbit": 13,
        "loss": 0.002, "wake_ms": 260, "sleep_s": 11.6, "radio_w": 1.29,
    },
    # 5G on an LTE core (NSA), mid-band, a server in the country. An assumption between LTE and what operators show.
    "5g": {
        "rtt_ms": 40, "jitter_ms": 15, "jitter": "exponential", "rate_up_mbit": 50, "rate_down_mbit": 300,
        "loss": 0.001, "wake_ms": 200, "sleep_s": 10, "radio_w": 1.5,
    },
    # Low orbit. Median 50 ms, quartiles 40 and 60 to European servers, 2022 (UCLouvain: blog.apnic.net, 28 Nov 2022);
    # Starlink itself states 25.7 ms in the US, June 2025. Losses at handovers: Kassem et al., IMC 2022.
    "satellite": {
        "rtt_ms": 50, "jitter_ms": 20, "jitter": "normal", "rate_up_mbit": 15, "rate_down_mbit": 150, "loss": 0.01,
    },
    # Geostationary: four times 35,786 km at the speed of light are 477 ms, and access adds to it.
    "satellite-geo": {
        "rtt_ms": 600, "jitter_ms": 40, "jitter": "exponential", "rate_up_mbit": 3, "rate_down_mbit": 25, "loss": 0.005,
    },
    # New York to Europe and back: 73 to 85 ms by provider (Hathora, "Cloud latency shootout").
    "transatlantic": {"rtt_ms": 78, "jitter_ms": 2, "loss": 0.0005},
    # Oregon to Sydney: 278.5 ms for a call and TCP handshake, two round trips (bytecode.tech, "AWS latency index").
    "transpacific": {"rtt_ms": 139, "jitter_ms": 3, "loss": 0.0005},
}  # fmt: skip

DEVICES: Final[dict[str, Preset]] = {
    # 120 M parameters, int4, onnxruntime on one thread of an EPYC: 142 tokens/s, 32 tokens in 76 ms. Measured here.
    "desktop": {"draft_ms": 7.2, "prefill_ms": 2.4, "power_w": 15},
    # 1.5 B parameters at 4 bits on an RTX 4050 Laptop: 131.7 tokens/s at 34.1 W (arXiv 2603.23640). Prefill: assumed.
    "laptop-gpu": {"draft_ms": 7.6, "prefill_ms": 0.5, "power_w": 34.1, "battery_wh": 60},
    # 1.5 B at 4 bits on an iPhone 16 Pro: 40 tokens/s cool, 22.6 hot (the same). Power: assumed. Battery: 13.9 Wh.
    "phone": {"draft_ms": 25, "prefill_ms": 3, "power_w": 4, "battery_wh": 13.9},
    "phone-hot": {"draft_ms": 44, "prefill_ms": 5, "power_w": 4, "battery_wh": 13.9},
    # What an NPU and a draft of some hundred million parameters might do: an assumption, the optimistic end.
    "phone-npu": {"draft_ms": 8, "prefill_ms": 0.5, "power_w": 2, "battery_wh": 13.9},
    # 120 M, int8 in WebAssembly on two threads: 41 tokens/s, 8 tokens in 48 ms. Measured here.
    "browser": {"draft_ms": 24, "prefill_ms": 6, "power_w": 10},
}  # fmt: skip

# Steps of GPUs are rooflines (see target_model); 3 ms beside them for launches, sampling and scheduling are an
# assumption. 70 B in 16 bits needs two H200 or four H100 to leave room for KV.
_GPU: Final = {"overhead_ms": 3.0, "max_num_batched_tokens": 2048, "max_num_seqs": 256, "service_ms": 0.5}
TARGETS: Final[dict[str, Preset]] = {
    # The event model of DESIGN section 4.
    "plain-30ms": {"step_ms": 30},
    # The inflated reference target, bfloat16, 146 M parameters, one thread of an EPYC. Measured here.
    "reference": {
        "step_ms": {1: 41, 4: 44, 8: 50, 16: 62, 32: 88}, "max_num_batched_tokens": 512, "max_num_seqs": 64,
        "max_model_len": 1024,
    },
    "8b-h100": {"model": "llama-3.1-8b", "gpu": "h100", "gpus": 1, **_GPU},
    "8b-h200": {"model": "llama-3.1-8b", "gpu": "h200", "gpus": 1, **_GPU},
    "70b-4xh100": {"model": "llama-3.1-70b", "gpu": "h100", "gpus": 4, **_GPU},
    "70b-2xh200": {"model": "llama-3.1-70b", "gpu": "h200", "gpus": 2, **_GPU},
    "70b-fp8-2xh100": {"model": "llama-3.1-70b", "gpu": "h100", "gpus": 2, "weight_bits": 8, **_GPU},
}  # fmt: skip

# On-demand list prices of a GPU for an hour, RunPod, spring 2026 (spheron.network, deploybase.ai); egress: AWS's list
# price of the first terabytes.
PRICES: Final[dict[str, Preset]] = {
    "none": {},
    "h100-2026": {"gpu_hour": 2.69, "egress_gb": 0.09},
    "h200-2026": {"gpu_hour": 3.59, "egress_gb": 0.09},
}

# What people would expect of text and draft; nothing more exact is known before a draft is measured.
ACCEPTANCES: Final[dict[str, Preset]] = {
    "good": {"rate": 0.8},
    "fair": {"rate": 0.6},
    "poor": {"rate": 0.3},
    "bursts": {"kind": "bursts", "rate": 0.9, "hard_rate": 0.35, "hard_share": 0.4, "stretch": 16},
}

PRESETS: Final[dict[str, dict[str, Preset]]] = {
    "link": LINKS,
    "device": DEVICES,
    "target": TARGETS,
    "prices": PRICES,
    "acceptance": ACCEPTANCES,
}
