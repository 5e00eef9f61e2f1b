"""What the systems are called in tables and pictures."""

NAMES = {
    "raylora": "raylora",
    "raylora_unstacked": "raylora, one client at a time, no cache",
    "bare": "bare loop",
    "pfl": "pfl",
    "flower": "Flower",
}
