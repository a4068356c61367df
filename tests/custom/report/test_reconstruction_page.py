"""The report says all that it must, nothing in it can be taken for markup, and it stays small and self-contained."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from dataclasses import replace
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import pydicom
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from report_content import content, radiograph

from custom.geometry import views_from_angles
from custom.radiographs import MetadataValue, Origin
from custom.report.document import Markup, escape, fragment, render_page
from custom.report.patient_head import patient_facts
from custom.report.radiograph_pictures import side_letters
from custom.report.reconstruction_page import STAMP, card_tables, head
from custom.trust import NAMES, CheckResult, PoseRefinement, Verdict
from custom.trust.pose_refinement import ViewMove, moved_view
from tests.custom.report.page_reader import Page, written

EVIL = "<script>alert(1)</script>\"><img src=x onerror=alert(1)>'&\u202e\x00\ud800"
CARD = """# Card
| | |
|---|---|
| seen in training | ten CTs of `adults`, [listed](list.md) |
| not for | **children** \\| animals |

Training CTs:

| case | collection | DOI |
|:---|---|--:|
| a, b | Collection X | |

## Limits
| | |
|---|---|
| patients | far too few |
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return written(tmp_path_factory.mktemp("report"), model={"name": "tiny", "sha256": "d" * 64, "card": CARD})


def test_everything_that_the_report_has_to_say_is_there(page: Page) -> None:
    assert not page.open, "every tag is closed"
    for words in (
        STAMP, "Müller Jürgen", "PAT-7", "2026-01-31", "REVIEW", "At least one check found something unusual",
        "frontal.dcm: a warning of this file", "a warning of the reconstruction", NAMES["reprojection"],
        f"“{NAMES['geometry']}” is in doubt. The distance is unusual.", "Not checked: one view.",
        "DICOM (0018,1110)", "Source to detector [mm]", "1500", "usual value: the detector is centred",
        "mm of water root mean square", "CT values in the body", "soft tissue (-30 to 150 HU)",
        "seen in training", "ten CTs of adults, listed", "children | animals", "far too few", "Not a medical device",
        "a" * 64, "d" * 64, "ct.nii.gz", "e" * 64, "2026-02-01 12:00 UTC",
    ):  # fmt: skip
        assert words in page.text, words
    assert (
        page.text.index("children | animals")
        < page.text.index("far too few")
        < page.text.index("Collection X")
        < page.text.index("Not a medical")
    )


def test_every_printed_page_says_whose_it_is(page: Page, tmp_path: Path) -> None:
    def running_head(html: str) -> str:
        (stored,) = re.findall(r'@top-right \{ content: "([^"]*)"', html)
        assert re.fullmatch(r"(?:[A-Za-z0-9]|\\[0-9a-f]{6})*", stored), "nothing in it ends the string"
        return re.sub(r"\\([0-9a-f]{6})", lambda found: chr(int(found[1], 16)), stored)

    assert running_head(page.html) == "Müller Jürgen · PAT-7 · study 2026-01-31 · reconstructed 2026-02-01 12:00 UTC"
    assert "<small><bdi>Müller Jürgen · PAT-7 · study 2026-01-31</bdi></small></h1>" in page.html
    views = [radiograph("frontal.dcm", 90.0), radiograph("lateral.dcm", 0.0)]
    for view in views:
        view.header.PatientName = '"} body {display: none} </style>\u202e'  # type: ignore[union-attr]
    hostile = written(tmp_path, radiographs=views)
    assert running_head(hostile.html).startswith('"} body {display: none} </style>\ufffd · PAT-7')
    nameless = written(tmp_path, radiographs=[replace(view, header=None) for view in views])
    assert running_head(nameless.html) == "patient not named in the radiographs · reconstructed 2026-02-01 12:00 UTC"


def test_the_users_own_name_of_a_file_stands_beside_the_files(tmp_path: Path) -> None:
    views = [replace(radiograph("radiograph_1.dcm", 90.0), called="<b>Thorax</b> PA.dcm"), radiograph("b.dcm", 0.0)]
    page = written(tmp_path, radiographs=views)
    assert "radiograph_1.dcm (<b>Thorax</b> PA.dcm): a warning of this file" in page.text
    shown = "<bdi>radiograph_1.dcm (&lt;b&gt;Thorax&lt;/b&gt; PA.dcm)</bdi>"
    assert page.html.count(shown) == 2, "picture and geometry"
    assert page.text.count("radiograph_1.dcm (<b>Thorax</b> PA.dcm)") == 4, "and the list of files"


def test_verdicts_are_words_and_not_colours_alone(page: Page) -> None:
    assert page.text.count("REVIEW") >= 3
    badges = re.findall(r'<span class="badge ([\w-]+)"><span aria-hidden="true">(.) </span>([\w ]+)</span>', page.html)
    assert badges == [("pass", "✓", "PASS"), ("review", "!", "REVIEW"), ("not-checked", "?", "NOT CHECKED")]


@pytest.mark.parametrize("verdict", [Verdict.PASS, Verdict.REVIEW, Verdict.REJECT])
def test_every_verdict_says_what_to_do(verdict: Verdict) -> None:
    html = fragment("reconstruction_head.html", **head(content(verdict=verdict)))
    advice = {"PASS": "Review it before use", "REVIEW": "A qualified person must", "REJECT": "Do not use this volume"}
    assert [name for name, words in advice.items() if words in html] == [verdict.value]


@pytest.mark.parametrize(
    "checks", [[], [CheckResult("views", Verdict.NOT_CHECKED, None, None, None, "Not checked: nobody knows.")]]
)
def test_nothing_checked_is_not_passed(checks: list[CheckResult]) -> None:
    for verdict, word in ((Verdict.PASS, "REVIEW"), (Verdict.REVIEW, "REVIEW"), (Verdict.REJECT, "REJECT")):
        html = fragment("reconstruction_head.html", **head(content(verdict=verdict, checks=checks)))
        assert f"</span>{word}</strong>" in html
        assert ("Nothing was checked" in html) == (verdict != Verdict.REJECT)
        assert "No check found" not in html and "At least one check found something" not in html


def test_numbers_of_checks_have_digits_that_count(tmp_path: Path) -> None:
    small = CheckResult("agreement", Verdict.PASS, 2.14e-4, 3e-9, math.inf, "They agree.")
    page = written(tmp_path, checks=[small])
    assert "0.000214" in page.text and "3·10⁻⁹" in page.text and "∞" in page.text and "0.000 " not in page.text


def test_warnings_stand_above_everything_else_each_once(tmp_path: Path) -> None:
    failed = CheckResult("agreement", Verdict.REJECT, 0.4, 0.1, 0.2, "The radiographs do not show one body.")
    page = written(tmp_path, checks=[failed], warnings=["twice", "twice"])
    first = f"REJECT: “{NAMES['agreement']}” does not hold. The radiographs do not show one body."
    starts = (first, "twice", "frontal.dcm: a")
    order = [page.text.index(words) for words in starts]
    assert order == sorted(order) and order[-1] < page.text.index("What was measured against")
    assert page.text.count("twice") == 1 and "Warnings (4)" in page.text


def test_moved_views_stand_in_a_table(tmp_path: Path) -> None:
    stated = content().views
    move = ViewMove(angle_deg=-5.4, along_columns_mm=8.0)
    views = torch.stack([stated[0], moved_view(stated[1], move)])
    moves, free = (ViewMove(), move), ("angle_deg", "along_rows_mm", "along_columns_mm")
    found = PoseRefinement(stated, views, moves, (0.0, 41.0), (False, False), free, (0.08, 0.03))
    page = written(tmp_path, poses=found)
    for words in (
        "Where the radiographs were taken", "frontal.dcm stands as stated", "as if from 354.6 instead of 0.0 degrees",
        "8 mm towards the picture's lower edge", "Angle taken", "354.6", "+8.0", "41",
        "8.0% as stated", "3.0% as taken",
    ):  # fmt: skip
        assert words in page.text, words
    assert not page.open


def test_what_is_in_no_file_is_marked_as_allowed_or_usual(tmp_path: Path) -> None:
    one = radiograph("frontal.dcm", 90.0)
    distance = MetadataValue("source_to_detector_mm", 1800.0, Origin.OPTION, "default-distances")
    metadata = replace(one.metadata, source_to_detector_mm=distance)
    page = written(tmp_path, radiographs=[replace(one, metadata=metadata), radiograph("lateral.dcm", 0.0)])
    assert page.text.count("usual value: the detector is centred") == 2
    assert page.text.count("assumed: ") == 1 and "assumed: option --accept default-distances" in page.text


@pytest.mark.parametrize(("angle", "said"), [(90.0, False), (270.0, True)])
def test_left_on_the_left_of_a_pa_is_said(tmp_path: Path, angle: float, said: bool) -> None:
    views = views_from_angles([0.0, angle], pixel_mm=15.0)
    page = written(tmp_path, views=views)
    assert (side_letters(views[1])[0] == "L") == said
    assert ("So in radiograph 2 the patient's left (L) is on the left" in page.text) == said
    assert page.text.count("as seen from its source") == said


def test_one_hash_of_a_folder_says_how_it_is_made(tmp_path: Path) -> None:
    page = written(tmp_path, files={"ct.nii.gz": "e" * 64, "ct/": "f" * 64})
    assert page.text.count("written with this report") == 2
    assert "ct/written with this report; hash of what “LC_ALL=C sha256sum *” prints in it" + "f" * 64 in page.text


def test_no_text_is_taken_for_markup(tmp_path: Path) -> None:
    """Hostile texts at every place that a file or a user fills; each has a mark of its own, so that none is lost."""
    places: list[str] = []

    def evil(place: str) -> str:
        places.append(place)
        return EVIL.replace("(1)", f"({place})")

    one, other = radiograph("frontal.dcm", 90.0), radiograph("lateral.dcm", 0.0)
    # Keys are fields of the record, which no file names.
    metadata = replace(
        one.metadata,
        orientation=MetadataValue("orientation", evil("value"), Origin.FILE, evil("where")),
        pixel_mm=MetadataValue("pixel_mm", [evil("entry"), None], Origin.USUAL_VALUE, EVIL),
    )
    one = replace(one, name=evil("file"), modality=evil("modality"), sha256=evil("hash"), metadata=metadata)
    one = replace(one, warnings=(evil("radiograph"),))
    other.header.PatientName = evil("patient").replace("\ud800", "") + "^<b>x</b>"  # type: ignore[union-attr]
    other.header.PatientID = evil("id").replace("\ud800", "")  # type: ignore[union-attr]
    page = written(
        tmp_path,
        radiographs=[one, other],
        warnings=[evil("warning")],
        checks=[CheckResult(evil("check"), Verdict.REVIEW, float("nan"), None, float("inf"), evil("message"))],
        model={
            "name": evil("model"),
            "sha256": evil("sha"),
            evil("key"): "1",
            "card": CARD.replace("adults", evil("card")),
        },
        files={evil("output"): evil("digest")},
        version=evil("version"),
    )
    _check_harmless(page)
    assert len(places) == 19 and all(f"alert({place})" in page.text for place in places)
    assert "\u202e" not in page.html and "\x00" not in page.html


def _check_harmless(page: Page) -> None:
    assert not page.open
    scripts = [attributes for tag, attributes in page.tags if tag == "script"]
    assert sum("type" not in attributes for attributes in scripts) == 2, "NiiVue and our own, nothing else"
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form", "b") or (tag == "b" and not attributes)
        assert not any(name.startswith("on") or name == "style" for name in attributes), (tag, attributes)
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("data:image/", "#")), (tag, attributes)


@given(st.text(max_size=40))
def test_escape_leaves_no_markup_and_no_invisible_character(text: str) -> None:
    safe = escape(text)
    assert not set(safe) & set("<>\"'\x00\x1b\u202e\u2066") and escape(safe) is safe
    safe.encode("utf-8")


@pytest.mark.parametrize(
    ("charset", "stored", "shown"),
    [
        ("ISO_IR 144", "Люкceмбypг".encode("iso8859_5"), "Люкceмбypг"),
        ("ISO_IR 100", "Buc^Jérôme".encode("latin_1"), "Buc Jérôme"),
        ("ISO_IR 192", "Wang^XiaoDong=王^小东=".encode(), "Wang XiaoDong = 王 小东"),
        (
            "\\ISO 2022 IR 87",
            b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
            "Yamada Tarou = 山田 太郎 = やまだ たろう",
        ),
        ("ISO_IR 192", b"\xff\xfe^<script>", "�� <script>"),
    ],
)
def test_names_keep_their_letters(charset: str, stored: bytes, shown: str) -> None:
    header = pydicom.Dataset()
    header.SpecificCharacterSet = charset.split("\\") if "\\" in charset else charset
    header["PatientName"] = pydicom.DataElement("PatientName", "PN", pydicom.valuerep.PersonName(
        stored, encodings=pydicom.charset.convert_encodings(header.SpecificCharacterSet)))  # fmt: skip
    assert patient_facts([header, None])["Patient"] == shown


def test_two_patients_are_both_named_and_none_is_said_to_be_missing() -> None:
    headers = [pydicom.Dataset(), pydicom.Dataset()]
    headers[0].PatientID, headers[1].PatientID = "A", "B"
    assert patient_facts(headers)["Patient ID"] == "A; B"
    assert patient_facts([None])["Patient ID"] == "not in the radiographs' headers"


def test_the_policy_names_every_script_and_forbids_the_network(page: Page) -> None:
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    rules = dict(rule.split(" ", 1) for rule in str(policy).split("; "))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
    assert set(rules) == {"default-src", "img-src", "style-src", "base-uri", "form-action", "script-src"}
    scripts = re.findall(r"<script>(.*?)</script>", page.html, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    assert rules["script-src"] == " ".join(f"'sha256-{digest}'" for digest in hashes) and len(scripts) == 2
    assert "unsafe" not in str(policy)


def test_niivue_is_the_file_that_its_readme_names() -> None:
    folder = resources.files("custom.report") / "vendor"
    digest = hashlib.sha256((folder / "niivue.umd.js").read_bytes()).hexdigest()
    assert digest in (folder / "README.md").read_text() and "BSD 2-Clause" in (folder / "LICENSE").read_text()


def test_a_script_that_would_end_early_is_refused() -> None:
    with pytest.raises(ValueError, match="end or change the page"):
        render_page("reconstruction_head.html", "a", scripts=["'</SCRIPT>'"])
    assert escape(Markup("<p>")) == "<p>"


def test_pictures_and_controls_have_names(page: Page) -> None:
    for tag, attributes in page.tags:
        assert tag != "img" or "alt" in attributes
    alternatives = [a["alt"] for tag, a in page.tags if tag == "img"]
    # The reprojections that are blended over the radiographs repeat pictures that are described beside them.
    assert alternatives.count("") == 2 and sum("Reprojection for radiograph" in str(a) for a in alternatives) == 2
    labelled = re.findall(r"<label[^>]*>(?:(?!</label>).)*<(?:input|select)", page.html, re.DOTALL)
    assert len(labelled) == sum(tag in ("input", "select") for tag, _ in page.tags) == 2 + 3 + 1 + 3
    assert ("html", {"lang": "en"}) in page.tags
    canvas = next(attributes for tag, attributes in page.tags if tag == "canvas")
    assert canvas["role"] == "img" and canvas["aria-label"] and canvas["tabindex"] == "0"


def _luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_texts_have_contrast_in_light_dark_and_print(page: Page) -> None:
    """WCAG 2.2, success criterion 1.4.3: at least 4.5 to 1 (formula of the relative luminance from there)."""
    style = re.search(r"<style>(.*?)</style>", page.html, re.DOTALL)[1]  # type: ignore[index]
    blocks = [dict(re.findall(r"--(\w+): (#\w+)", block)) for block in re.findall(r":root \{([^}]*)\}", style)]
    light, dark, more_light, more_dark, print_ = blocks
    checked = 0
    for palette in (light | more_light, dark | more_dark, light | more_light | print_):
        for text in ("text", "muted", "pass", "review", "reject", "assumed"):
            for back in ("back", "soft"):
                one, other = sorted((_luminance(palette[text]), _luminance(palette[back])))
                assert (other + 0.05) / (one + 0.05) >= 4.5, (text, back, palette)
                checked += 1
    assert checked == 36


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"radiographs": []}, "at least one radiograph"),
        ({"image": torch.zeros(1, 8, 8)}, "image, exposed and reprojections"),
        ({"views": torch.zeros(2, 12)}, "views must be"),
        ({"hu": torch.zeros(4, 4, 4)}, "hu must be on the grid"),
        ({"std": torch.zeros(4, 4, 4)}, "std must be on the grid"),
        ({"samples": [torch.zeros(1, 4, 4, 4)]}, "samples must be"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        content(**changes)


def test_a_card_is_read_as_its_tables() -> None:
    assert card_tables(CARD) == [
        (["", ""], [["seen in training", "ten CTs of adults, listed"], ["not for", "children | animals"]]),
        (["case", "collection", "DOI"], [["a, b", "Collection X", ""]]),
        (["", ""], [["patients", "far too few"]]),
    ]
    assert card_tables("") == card_tables("no table | here") == []


@given(st.text(alphabet="|- \\:a\n`*[]()", max_size=60))
def test_no_card_breaks_the_reading(card: str) -> None:
    for names, rows in card_tables(card):
        assert all(len(row) == len(names) for row in rows)


def test_the_date_is_the_readers_to_check() -> None:
    assert content().created == datetime(2026, 2, 1, 12, tzinfo=UTC)


def test_the_ct_stands_beside_the_radiographs_before_everything_else(page: Page) -> None:
    parts = ('class="verdict', 'class="given"', 'id="viewer-canvas"', 'id="planes"', 'class="facts"', 'id="warnings')
    places = [page.html.index(part) for part in parts]
    assert places == sorted(places)
    given = page.html[places[1] : places[2]]
    assert re.findall(r'<span class="(?:left|right)">(\w+)</span>', given) == ["R", "L", "P", "A"]


def test_the_uncertainty_is_not_shown_at_first_and_never_mixed_with_the_ct(page: Page) -> None:
    menu = re.search(r'<select id="viewer-spread"[^>]*>(.*?)</select>', page.html)[1]  # type: ignore[index]
    assert re.findall(r'<option value="([^"]*)">([^<]*)', menu) == [
        ("0", "Not shown"), ("1", "Instead of the CT, 0 to 500 HU"),
    ]  # fmt: skip
    assert set(json.loads(page.data("viewer-settings"))["colormap"]["A"]) == {255}, "opaque"


def test_both_residuals_say_what_they_leave_out(page: Page) -> None:
    assert page.text.count("too thin and too dense both count, tissue outside the box too") == 2
    assert "The trust check of the reprojection leaves out all that is too thin" in page.text
