"""Text of strangers, shown: what would act on a page, a terminal or a font is spelled out instead.

Control characters, lone surrogates, marks of direction and private-use characters are written as
`\\u202e`; line feeds and tabs stay. HTML is not escaped here: templates do that.
"""

from __future__ import annotations

import re
import unicodedata

from robench.types import GAP

SOFT = "[vectors]"  # where soft vectors stand in a prompt

# Categories Cc (controls), Cf (marks of direction, zero width), Co, Cs (surrogates), Zl, Zp
_ACTING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u115f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ud800-\udfff\ue000-\uf8ff\U000e0000-\U000e0fff\U000f0000-\U0010ffff]"
)


def visible(text: str) -> str:
    """The text with what cannot be seen spelled out."""
    return _ACTING.sub(_spelled, text.replace(GAP, SOFT).replace("\r\n", "\n"))


def one_line(text: str, most: int = 0) -> str:
    """`visible` text on one line, cut to `most` characters where that is more than 0."""
    line = " ".join(visible(text).split())
    return cut(line, most) if most else line


def cut(text: str, most: int) -> str:
    """The text, its end replaced by a mark where it has more than `most` characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def columns(text: str) -> int:
    """Columns that text takes in a terminal: wide characters take two, combining ones none."""
    return sum(
        0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in "WF")
        for char in text
    )


def _spelled(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
