from __future__ import annotations

import base64
import io
import os
import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from limbeck.report import ReportData, render_report
from limbeck.report.drawing import spread

FRACTIONS = (0.01, 0.05, 0.1, 0.5)  # of the usual run; one chart over steps each
HOSTILE = '</title><script>alert(\'x\')</script>"onload="y" $a^b$ {{ 7 * 7 }} &amp;'


def accuracy_rows(page: Any) -> list[str]:
    """The rows of the accuracy tables, heads included."""
    texts = [e.text for e in page.all("tr")]
    return texts[next(i for i, text in enumerate(texts) if text.startswith("Method")) :]


def test_the_sections_come_in_the_order_of_what_a_reader_asks(make_data: Any, read_page: Any) -> None:
    page = read_page(make_data())
    assert page.one("h1").text == "digits-nightly"
    headings = ["Key figures", "Accuracy", "Synthetic images", "Distillation", "Stages", "Provenance", "Spec"]
    assert [e.text for e in page.all("h2")] == headings
    assert page.one("html").attributes["lang"] == "en"
    assert page.one("p", class_="verdict").text.startswith("On digits with 1 % of the labels, 28 synthetic images")


def test_headings_skip_no_level(make_data: Any, read_page: Any) -> None:
    levels = [int(e.tag[1]) for e in read_page(make_data()).elements if re.fullmatch("h[1-6]", e.tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_the_accuracy_table_has_methods_as_rows_and_label_fractions_as_columns(make_data: Any, read_page: Any) -> None:
    page = read_page(make_data())
    rows = accuracy_rows(page)
    assert rows[0] == "Method 1 %18 labels 5 %90 labels 10 %180 labels 50 %898 labels"
    assert [re.match(r"[A-Za-z -]+", row)[0].strip() for row in rows[1:8]] == [  # type: ignore[index]
        "Full data",
        "Distilled",
        "Start of the distillation",
        "Highest-loss subset",
        "Random subset",
        "No pre-training",
        "Recovered gapeach method at its best steps",
    ]
    assert re.fullmatch(r"Distilled 42\.1 ± \d\.\d 65\.5 ± \d\.\d 74\.8 ± \d\.\d 88\.6 ± \d\.\d", rows[2])
    assert rows[7] == "Recovered gapeach method at its best steps 42 % 33 % 31 % 29 %"
    assert "mean ± standard deviation over 5 seeds" in page.text
    assert {e.attributes["scope"] for e in page.all("th")} == {"row", "col"}


def test_the_best_small_set_is_emphasised_and_the_full_data_never(
    make_data: Any, make_accuracies: Any, read_page: Any
) -> None:
    means = {"full": (0.9, 0.9), "distilled": (0.5, 0.6), "highLoss": (0.3, 0.3), "random": (0.4, 0.7)}
    page = read_page(make_data(accuracies=make_accuracies(means, fractions=(0.01, 0.1))))
    assert [e.text for e in page.all("strong")] == ["50.0", "70.0"]


def test_a_lone_small_set_is_not_called_best(make_data: Any, make_accuracies: Any, read_page: Any) -> None:
    assert read_page(make_data(accuracies=make_accuracies({"distilled": (0.5,)}))).all("strong") == []


def test_every_task_and_architecture_has_its_table_and_chart(
    make_data: Any, make_accuracies: Any, read_page: Any
) -> None:
    both = make_accuracies() + make_accuracies(architecture="resnet18") + make_accuracies(task="shapes")
    page = read_page(make_data(accuracies=both, iterations=0))
    settings = ["digits, convnet", "digits, resnet18", "shapes, convnet"]
    assert [e.text for e in page.all("h3")][1:4] == settings
    titles = [e.text for e in page.all("title")]
    assert [title for title in titles if "label fraction" in title] == [
        f"Accuracy over label fraction: {setting}. The table holds its figures." for setting in settings
    ]


def test_ids_are_unique_and_everything_named_by_one_exists(
    make_data: Any, make_accuracies: Any, read_page: Any
) -> None:
    both = make_accuracies() + make_accuracies(architecture="resnet18")
    page = read_page(make_data(accuracies=both))
    ids = [e.attributes["id"] for e in page.elements if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    named = [e.attributes["aria-labelledby"] for e in page.elements if "aria-labelledby" in e.attributes]
    named += [e.attributes["href"][1:] for e in page.all("use")]
    named += re.findall(r"url\(#(.*?)\)", render_report(make_data(accuracies=both)))
    assert named
    assert set(named) <= set(ids)


def test_every_picture_and_chart_says_what_it_is(make_data: Any, read_page: Any) -> None:
    page = read_page(make_data())
    assert all(e.attributes["alt"] for e in page.all("img"))
    assert len({e.attributes["alt"] for e in page.all("img")}) == len(page.all("img"))
    charts = page.all("svg")
    assert len(charts) == 3 + len(FRACTIONS)
    assert all(e.attributes["role"] == "img" and e.attributes["aria-labelledby"] for e in charts)


def test_a_picture_holds_the_very_pixels(make_data: Any, read_page: Any) -> None:
    data = make_data(images=3, real=0)
    shown = [_pixels(e.attributes["src"]) for e in read_page(data).all("img")]
    expected = [image for pair in zip(data.synthetic, data.initial, strict=True) for image in pair]
    np.testing.assert_array_equal(shown, expected)


def test_of_many_pairs_48_are_shown_and_it_says_so(make_data: Any, read_page: Any) -> None:
    data = make_data(images=1000, real=100)
    page = read_page(data)
    assert "48 of 1,000 synthetic images shown, evenly spaced" in page.text
    synthetic = [e for e in page.all("img") if e.attributes["alt"].startswith("Synthetic")]
    assert len(synthetic) == 48
    np.testing.assert_array_equal(_pixels(synthetic[0].attributes["src"]), data.synthetic[0])
    np.testing.assert_array_equal(_pixels(synthetic[-1].attributes["src"]), data.synthetic[999])
    assert "24 of 1,797 images of the source" in page.text


def test_the_stages_say_what_was_reused_and_show_device_memory_only_where_there_is_some(
    make_data: Any, read_page: Any
) -> None:
    data = make_data()
    page = read_page(data)
    teacher = next(e.text for e in page.all("tr") if e.text.startswith("teacher"))
    assert teacher == "teacher 1 min 01 s 700 MiB reused 0b0b0b0b0b0b"
    assert "Device memory" not in page.text
    assert "was spent in the run that computed it" in page.text

    stages = [
        s.model_copy(update={"peak_device_memory_bytes": 9 * 2**30, "reused": False}) for s in data.summary.stages
    ]
    page = read_page(make_data(stages=stages))
    assert "Device memory" in page.text
    assert "9.0 GiB" in page.text
    assert "was spent in the run that computed it" not in page.text


def test_skipped_images_are_counted_and_the_first_ten_named(make_data: Any, read_page: Any) -> None:
    skipped = {f"bad-{i:02d}.jpg": "truncated" for i in range(23)}
    text = read_page(make_data(source={"skipped": skipped})).text
    assert "23 images, the first 10 of them:" in text
    assert "bad-09.jpg: truncated" in text
    assert "bad-10.jpg" not in text


def test_the_spec_is_readable_yaml(make_data: Any, read_page: Any) -> None:
    spec = read_page(make_data()).one("pre")
    assert spec.inside[-1] == "details"
    assert "".join(spec.texts).startswith("apiVersion: limbeck.dev/v1alpha1\nkind: Distillation\nspec:\n  source:\n")


def test_only_web_addresses_become_links(make_data: Any, read_page: Any) -> None:
    links = {
        "run": "https://mlflow.test/e/1",
        "bad": "javascript:alert(1)",
        "distilledSet": "/results/distill/3f1c",
    }
    page = read_page(make_data(links=links))
    assert [e.attributes["href"] for e in page.all("a")] == ["https://mlflow.test/e/1"]
    assert "javascript:alert(1)" in page.text
    assert "Distilled set" in page.text


def test_the_page_fetches_nothing_and_runs_nothing(make_data: Any, read_page: Any) -> None:
    page, html = read_page(make_data()), render_report(make_data())
    fetched = [e.attributes[name] for e in page.elements for name in ("src", "data", "poster") if name in e.attributes]
    fetched += [e.attributes["href"] for e in page.elements if e.tag in ("link", "image", "use")]
    assert all(address.startswith(("data:", "#")) for address in fetched)
    assert all(target.startswith("#") for target in re.findall(r"url\(\s*['\"]?(.)", html))
    assert "@import" not in html
    assert not page.all("script")
    assert not [name for e in page.elements for name in e.attributes if name.startswith("on")]
    policy = page.one("meta", http_equiv="Content-Security-Policy").attributes["content"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_hostile_names_stay_text_everywhere(make_data: Any, make_accuracies: Any, read_page: Any) -> None:
    accuracies = make_accuracies(task=HOSTILE, architecture=HOSTILE)
    accuracies += [accuracies[0].model_copy(update={"method": HOSTILE})]
    stages = [s.model_copy(update={"name": HOSTILE, "digest": HOSTILE}) for s in make_data().summary.stages]
    page = read_page(
        make_data(
            name=HOSTILE,
            device=HOSTILE,
            limbeck_version=HOSTILE,
            accuracies=accuracies,
            stages=stages,
            source={"uri": HOSTILE, "fingerprint": HOSTILE, "skipped": {HOSTILE: HOSTILE}},
            distilled={"path": HOSTILE},
            links={HOSTILE: f"https://{HOSTILE}"},
            spec={HOSTILE: [HOSTILE]},
        )
    )
    shown = " ".join(HOSTILE.split())
    assert page.one("h1").text == shown
    assert page.all("title")[0].text == f"{shown}: limbeck report"
    assert not page.all("script")
    assert not [name for e in page.elements for name in e.attributes if name.startswith("on")]
    assert "49" not in page.one("h1").text


def test_credentials_appear_nowhere_in_the_file(make_data: Any) -> None:
    url = "https://ana:hunter2@h.test/set.zip?token=hunter2&part=1"
    html = render_report(
        make_data(
            source={"uri": url, "skipped": {f"{url}#a": f"could not read {url}"}},
            distilled={"path": url},
            links={url: url},
            device=url,
            spec={"spec": {"source": {"uri": url}, "args": ["--from", f"--also={url}"], url: url}},
        )
    )
    assert "hunter2" not in html
    assert "https://***@h.test/set.zip?token=***&amp;part=1" in html


def test_the_same_data_give_the_same_bytes_in_any_process(make_data: Any, tmp_path: Path) -> None:
    here = render_report(make_data())
    assert render_report(make_data()) == here
    program = "import sys; from conftest import make; from limbeck.report import render_report; "
    program += "sys.stdout.buffer.write(render_report(make()).encode())"
    (tmp_path / "matplotlibrc").write_text("font.size: 30\nlines.linewidth: 9\nsvg.fonttype: path\n")
    elsewhere = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parent,
        env=os.environ | {"PYTHONHASHSEED": "7", "MATPLOTLIBRC": str(tmp_path / "matplotlibrc"), "TZ": "Asia/Tokyo"},
        check=True,
        capture_output=True,
    )
    assert elsewhere.stdout == here.encode()


def test_charts_take_their_colours_from_the_page(make_data: Any, read_page: Any) -> None:
    page = read_page(make_data())
    drawn = [e for e in page.elements if "svg" in e.inside]
    styles = " ".join(e.attributes.get("style") or "" for e in drawn)
    assert "fill: currentColor" in styles
    assert "var(--distilled)" in styles
    assert not re.findall(r"#[0-9a-f]{6}", styles)
    assert "font-family" not in styles


def test_the_charts_leave_matplotlib_as_it_was(make_data: Any) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    render_report(make_data())
    assert dict(mpl.rcParams) == before


def test_labels_of_lines_that_end_together_are_moved_apart_in_order() -> None:
    placed = spread([0.9, 0.89, 0.2, 0.895], gap=0.1, high=1.0)
    assert placed[2] == pytest.approx(0.2)
    assert placed[1] < placed[3] < placed[0] <= 1.0
    assert min(placed[3] - placed[1], placed[0] - placed[3]) == pytest.approx(0.1)


class TestDegenerateRuns:
    """What is missing is said, not left blank or drawn empty."""

    def test_no_evaluation(self, make_data: Any, read_page: Any) -> None:
        page = read_page(make_data(accuracies=[]))
        assert "The run had no evaluation." in page.text
        assert "Recovered gap" not in page.text

    def test_one_seed_shows_no_deviation(self, make_data: Any, make_accuracies: Any, read_page: Any) -> None:
        page = read_page(make_data(accuracies=make_accuracies(seeds=1)))
        assert "from one seed: there is no deviation to show" in page.text
        assert "±" not in page.text

    def test_one_label_fraction_is_drawn_by_method(self, make_data: Any, make_accuracies: Any, read_page: Any) -> None:
        page = read_page(make_data(accuracies=make_accuracies(fractions=(0.05,))))
        assert page.one("title", id="accuracy-1-title").text.startswith("Accuracy by method: digits, convnet")
        assert {"Untrained", "Highest loss"} <= {e.text for e in page.all("text")}

    def test_no_gap_where_full_data_does_not_win(self, make_data: Any, make_accuracies: Any, read_page: Any) -> None:
        means = {"full": (0.4, 0.9), "distilled": (0.5, 0.6), "random": (0.45, 0.5)}
        page = read_page(make_data(accuracies=make_accuracies(means, fractions=(0.01, 0.1))))
        assert accuracy_rows(page)[4] == "Recovered gapeach method at its best steps \N{EN DASH} 25 %"
        assert "there is none to recover" in page.text

    def test_an_unmeasured_cell_is_a_dash(self, make_data: Any, make_accuracies: Any, read_page: Any) -> None:
        page = read_page(
            make_data(accuracies=make_accuracies({"full": (0.5,), "none": (0.1, 0.2)}, fractions=(0.01, 0.1)))
        )
        assert re.fullmatch("Full data 50\\.0↑ ± \\d\\.\\d \N{EN DASH}", accuracy_rows(page)[1])

    def test_no_history(self, make_data: Any, read_page: Any) -> None:
        page = read_page(make_data(iterations=0))
        assert "No history of the distillation was kept." in page.text
        assert len(page.all("svg")) == 1 + len(FRACTIONS)

    def test_a_history_that_diverged(self, make_data: Any, read_page: Any) -> None:
        data = make_data(iterations=50)
        losses = np.where(data.iterations > 20, np.nan, 10.0**data.iterations)
        page = read_page(replace(data, matching_losses=losses, learning_rates=np.full(50, np.inf)))
        assert len(page.all("svg")) == 2 + len(FRACTIONS)
        title = "Matching loss over the iterations of the distillation: from 1 to 1e+20."
        assert page.one("title", id="loss-title").text == title

    def test_one_logged_iteration(self, make_data: Any, read_page: Any) -> None:
        assert len(read_page(make_data(iterations=1)).all("svg")) == 3 + len(FRACTIONS)

    def test_started_from_noise(self, make_data: Any, read_page: Any) -> None:
        page = read_page(make_data(from_noise=True, real=0))
        assert "They started from noise." in page.text
        assert len(page.all("img")) == 28

    def test_no_pictures(self, make_data: Any, read_page: Any) -> None:
        page = read_page(make_data(images=0, shown=0, real=0))
        assert "There is no synthetic image to show." in page.text

    def test_a_run_with_next_to_nothing(self, make_data: Any, read_page: Any) -> None:
        page = read_page(
            make_data(
                images=0,
                real=0,
                iterations=0,
                accuracies=[],
                stages=[],
                links={},
                spec={},
                succeeded=False,
                source={"images": 0},
                distilled={"learning_rate": float("nan"), "matching_loss_first": float("nan")},
            )
        )
        assert "No stage was run." in page.text
        assert "The summary holds no spec." in page.text
        assert not re.search(r"\bnan\b|\binf\b|None", page.text)


class TestReportData:
    """Data of another shape are refused where they come in."""

    def test_histories_of_different_lengths(self, make_data: Any) -> None:
        with pytest.raises(ValueError, match=r"the histories have the shapes \[\(3,\), \(4,\)\]"):
            replace(make_data(iterations=4), matching_losses=np.zeros(3))

    def test_images_of_another_dtype_or_layout(self, make_data: Any) -> None:
        data: ReportData = make_data()
        with pytest.raises(ValueError, match=r"synthetic is float64\[28, 3, 8, 8\]; it must be uint8"):
            replace(data, synthetic=data.synthetic.astype(float))
        with pytest.raises(ValueError, match=r"real is uint8\[16, 8, 8, 3\]"):
            replace(data, real=data.real.transpose(0, 2, 3, 1))

    def test_initial_images_that_do_not_pair(self, make_data: Any) -> None:
        data: ReportData = make_data()
        with pytest.raises(ValueError, match="27 initial images for 28 synthetic ones"):
            replace(data, initial=data.synthetic[1:])


def _pixels(uri: str) -> Any:
    """uint8[3, s, s] of a PNG data URI."""
    header, encoded = uri.split(",")
    assert header == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded)))).transpose(2, 0, 1)
