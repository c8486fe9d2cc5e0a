"""Chinese texts: one reading per number, and different amounts that stay different."""

import random

import pytest

from evaluation.metrics.chinese import read_numerals
from evaluation.metrics.ours import error_counts, scored_tokens

wetext = pytest.importorskip("wetext")

EQUAL = """
千分之三 3‰ | 下午四点零五分 下午4:05 | 三块五 3块5 | 二零一医院 201医院
二百年 200年 | 二到三个 2-3个 | 下午三点半 下午3:30 | 零下五度 -5度 | 二〇二四 2024 | 电话幺三八 电话138
五公斤 5kg | 百分之百 100% | 百分之一百 百分之百 | 两百 二百 | 两百 200 | 二百五 250 | 两百五十 二百五 | 一百二 120
一百二 一百二十 | 一千三 1300 | 一万二 12000 | 一万二 一万二千 | 1.2万 一万二千 | 1.2万 12,000 | 三万五 35000
三万五千 3.5万 | 十二万三千 123000 | 12万3千 十二万三千 | 一百万 1000000 | 100万 1,000,000 | 1 000 000 一百万
一千万 10000000 | 两亿三千万 2.3亿 | 3.5亿 三点五亿 | 三点五百万 350万 | 一百三十亿元 130亿元 | 一亿 100000000
一万亿 1000000000000 | 一亿零五 100000005 | 一万零一 10001 | 一千零一 1001 | 一百零五 105 | 一千零五十 1050
一百一十五 115 | 一百十五 115 | 幺幺零 110 | 一百一十 110 | 幺零零八六 10086 | 一零零八六 10086 | 一万零八十六 10086
零零七 007 | 〇〇七 007 | 一三八零零一三八零零零 13800138000 | 幺三八零零幺三八零零零 13800138000 | 零二一 021
零幺零 010 | 五五五零一二三 555-0123 | 四零零八零零一二三四 400-800-1234 | 二〇二四年 2024年 | 二零二四年 2024年
两千零二十四 2024 | 一九九九年 1999年 | 一九九零年代 1990年代 | 九十年代 90年代 | 二〇二四到二〇二五年 2024-2025年
三月五日 3月5日 | 二零二四年三月五日 2024-03-05 | 二零二四年三月五日 2024年3月5日 | 十月一日 10月1日
第二十一届 第21届 | 第一 第1 | 二十一世纪 21世纪 | 三点五 3.5 | 三点一四 3.14 | 零点五 0.5 | 一点八零米 1.80米
二点二 2.2 | 两点二 2.2 | 一点二三 1.23 | 三分之一 1/3 | 二分之一 ½ | 四分之三 3/4 | 一又二分之一 1½ | 百分之五 5%
百分之三点五 3.5% | 百分之负五 -5% | 百分之五十 50% | 负五 -5 | 负四十 -40 | 零下四十度 -40度 | 零下五度 −5度
零下五摄氏度 -5℃ | 负五摄氏度 -5°C | 零下五度 负五度 | 五摄氏度 5℃ | 负零点五 -0.5 | 十美元 $10 | 10美元 $10
十元 ¥10 | 十元 10元 | 十欧元 €10 | 十英镑 £10 | 二十点五元 20.5元 | 五点五零美元 $5.50 | 五毫米 5mm | 二十毫米 20mm
五厘米 5cm | 五公里 5km | 五千米 5公里 | 五米 5m | 五克 5g | 三点五公斤 3.5kg | 三千五百克 3.5kg
二百八十八公斤 288kg | 一点五公里 1500米 | 五千克 5公斤 | 五毫升 5ml | 五升 5L | 五千克 5000克 | 五十千瓦 50kW
每小时六十公里 60km/h | 三点 3:00 | 三点钟 3:00 | 三点整 3:00 | 下午两点 下午2:00 | 两点 2点 | 三点三十 3:30
三点三十分 3点30分 | 三点三十 三点半 | 三点一刻 3:15 | 三点十五 三点一刻 | 三点三刻 3:45 | 十点零五分 10:05
零点三十分 00:30 | 十五点三十分 15:30 | 两小时 2小时 | 二十分钟 20分钟 | 十分钟 10分钟 | 二比一 2:1
一加一等于二 1+1=2 | 五人 5人 | 两个 2个 | 五十多 50多 | 一百多人 100多人 | 十几个 10几个 | a四纸 A4纸 | mp三 MP3
五g网络 5G网络 | 兩百 200 | 一萬二 12000 | 三億 3亿 | ２００年 二百年 | 一千万 1000万
"""
EQUAL = [
    tuple(pair.strip().rsplit(maxsplit=1)) for line in EQUAL.splitlines() for pair in line.split("|") if pair.strip()
]

DIFFERENT = """
两百 三百 | 二百 两千 | 百分之五 五 | 5% 5 | 百分之五 千分之五 | 百分之百 百分之十 | -5度 5度 | 零下五度 五度
零下五度 零度 | 零下五度 零下十五度 | -40 40 | 二百五 205 | 一百二 102 | 一万二 10002 | 一万二 1.2亿
一千零五 一千零五十 | 1001 1010 | 1001 101 | 10万 10亿 | 一百万 一千万 | 1.2万 12万 | 三点五 三十五 | 三点五 五点三
3.5 3.05 | 零点五 五 | 1.80米 1.08米 | 三分之一 三分之二 | 三分之一 四分之一 | 1/2 12 | 幺三八 幺三九 | 138 183
007 7 | 零零七 零七 | 555-0123 555-123 | 2024 2042 | 二〇二四 二〇二五 | 2024年 2024月 | 1990年代 90年代
3月5日 5月3日 | 第一 第二 | 第21届 21届 | 10:05 10:50 | 10:05 10:15 | 三点半 三点 | 三点半 四点半 | 三点半 三点十三
3:15 3:45 | 三点一刻 三点三刻 | 下午3:30 上午3:30 | $10 £10 | $10 €10 | $10 10 | 10元 10美元 | ¥10 $10 | 5kg 5g
5kg 500g | 5km 5m | 5cm 5mm | 五公斤 五斤 | 五公里 五里 | 5℃ 5% | 三四个 34个 | 两三个 23个 | 三五个 35个
七八百 780 | 几百 一百 | 数千 一千 | 十几 几十 | 十几 十 | 二到三个 二十三个 | 2-3个 3-2个 | 二比一 一比二
万一 10001 | 千万别去 一千万别去 | 百万 一万 | 两亿 两万 | 一万亿 一亿 | 十五 五十 | 十五 五 | 四十 十四 | 四 十
两点 两点半 | 13800138000 13800138001 | 50多 50 | 第一百 第一千 | 一百一十 一百零一 | 三万五 三万零五 | A4 A3
mp3 mp4 | 5G 4G | 1又1/2 1/2 | 五十千瓦 五千瓦 | 二两 二斤 | 0.5 0.05 | 1+1 1-1
"""
DIFFERENT = [
    tuple(pair.strip().rsplit(maxsplit=1))
    for line in DIFFERENT.splitlines()
    for pair in line.split("|")
    if pair.strip()
]


def test_there_are_enough_pairs():
    assert len(EQUAL) + len(DIFFERENT) >= 200 and all(len(pair) == 2 for pair in EQUAL + DIFFERENT)


@pytest.mark.parametrize("one, other", EQUAL)
def test_one_amount_written_differently_is_no_error(one, other):
    assert scored_tokens(one, "zh") == scored_tokens(other, "zh")
    assert error_counts(f"他说是{one}。", f"他说是{other}", "zh")[0] == 0


@pytest.mark.parametrize("one, other", DIFFERENT)
def test_different_amounts_are_errors(one, other):
    assert error_counts(one, other, "zh")[0] >= 1 and error_counts(other, one, "zh")[0] >= 1
    assert error_counts(f"他说是{one}。", f"他说是{other}", "zh")[0] >= 1


def spoken(number: int) -> str:
    if number == 0:
        return "零"
    text, gap = "", False
    for scale, name in ((10**8, "亿"), (10**4, "万"), (1, "")):
        section = number // scale % 10**4
        if section:
            text += ("零" if text and (gap or section < 1000) else "") + _section(section) + name
        gap = bool(text) and not section
    return text.removeprefix("一") if text.startswith("一十") else text


def _section(number: int) -> str:
    text, gap = "", False
    for scale, name in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit = number // scale % 10
        if digit:
            text += ("零" if gap else "") + "零一二三四五六七八九"[digit] + name
        gap = bool(text) and not digit
    return text


def some_numbers(num: int = 1000) -> list[int]:
    draw = random.Random(0)
    return [draw.randrange(10 ** draw.randint(1, 9)) for _ in range(num)]


def test_all_numbers_in_words_become_their_figures():
    for number in (*range(10_001), *some_numbers()):
        digits = str(number)
        if number and number % 10**4 == 0:
            digits = digits[:-8] + "亿" if number % 10**8 == 0 else digits[:-4] + "万"
        assert read_numerals(f"有{spoken(number)}个") == f"有{digits}个"


@pytest.mark.parametrize(
    "numbers",
    [
        pytest.param((*range(0, 10_001, 37), *some_numbers(200)), id="some"),
        pytest.param(range(10_001), id="all", marks=pytest.mark.slow),
    ],
)
def test_numbers_in_figures_are_those_in_words(numbers):
    for number in numbers:
        assert scored_tokens(f"有{number}个", "zh") == scored_tokens(f"有{spoken(number)}个", "zh"), number


@pytest.mark.parametrize(
    "figures, words",
    [
        ("{}%", "百分之{}"),
        ("-{}度", "零下{}度"),
        ("${}", "{}美元"),
        ("{}kg", "{}公斤"),
        ("{}mm", "{}毫米"),
        ("{:,}元", "{}元"),
    ],
)
def test_numbers_with_sign_currency_or_unit(figures, words):
    for number in (*range(1, 60), *some_numbers(50)):
        one, other = figures.format(number), words.format(spoken(number))
        assert number == 0 or scored_tokens(f"是{one}", "zh") == scored_tokens(f"是{other}", "zh"), one


def test_different_numbers_are_never_the_same():
    seen: dict[tuple[str, ...], str] = {}
    for number in {*range(1, 101), *some_numbers(50)} - {0}:
        for form in ("{}", "-{}", "${}", "£{}", "{}%", "{}毫米", "{}厘米", "{}.5", "0.{}", "第{}", "0{}"):
            if form == "0.{}" and number % 10 == 0:
                continue
            text = form.format(number)
            assert seen.setdefault(tuple(scored_tokens(f"是{text}", "zh")), text) == text


def test_digit_strings_are_compared_digit_by_digit():
    draw = random.Random(1)
    for _ in range(200):
        digits = [1, *(draw.randrange(1, 10) for _ in range(draw.randint(2, 10)))]
        figures, words = "".join(map(str, digits)), "".join("零一二三四五六七八九"[digit] for digit in digits)
        assert error_counts(words, figures, "zh") == (0, len(digits))
        assert error_counts(words.replace("一", "幺"), figures, "zh") == (0, len(digits))
        place = draw.randrange(1, len(digits))
        wrong = figures[:place] + str(digits[place] % 9 + 1) + figures[place + 1 :]
        assert error_counts(words, wrong, "zh") == (1, len(digits))
