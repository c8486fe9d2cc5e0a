"""English texts: one form per amount, and different amounts that stay different."""

import pytest

from evaluation.metrics.ours import contains_answer, contains_any, error_counts, scored_tokens

EQUAL = """
10 million people | ten million people
10 million | 10,000,000
10.5 million | ten point five million
ten and a half million | 10,500,000
10 million 500 thousand | ten million five hundred thousand
half a million | 500,000
2 thousand and 5 | two thousand and five
10k followers | ten thousand followers
10M views | ten million views
7 billion | 7000000000
2 trillion | two trillion
1 000 000 people | 1000000 people
12 345 | twelve thousand three hundred and forty five
1 234 567.5 | 1,234,567.5
12,34,567 | 1234567
a hundred people | 100 people
a thousand | 1,000
a hundred and five | one hundred five
nineteen hundred | 1900
twenty one hundred | 2100
one hundred and two thousand | 102,000
two hundred and first | 201st
the hundredth | the 100th
zero | 0
wait...5 dogs | wait five dogs
room b.5 | room b 5
fifteen | 15
ninety-nine | 99
it costs $10 | it costs ten dollars
it costs £10 | it costs ten pounds
it costs €10 | it costs ten euros
¥500 | five hundred yen
it costs $10 million | it costs ten million dollars
$10-million deal | ten million dollar deal
$2.5bn | two point five billion dollars
$5m | five million dollars
$5k | 5000 dollars
£ 10 | £10
10 € | €10
10€ | ten euros
$5.50 | five dollars fifty
$5.50 | five dollars and fifty cents
$5.50 | 5 dollars 50
$5.05 | five dollars and five cents
$5.00 | five dollars
£5.50 | five pounds fifty
£5.50 | five pounds and fifty pence
€3.20 | three euros twenty
€3.20 | 3 euros and 20 cents
$0.50 | fifty cents
50 cents | fifty cents
50¢ | fifty cents
£0.05 | five pence
50p | fifty pence
$1 | one dollar
a $10 bill | a ten dollar bill
-$5 | minus five dollars
$-5 | -$5
$1,234.56 | one thousand two hundred and thirty-four dollars and fifty-six cents
minus five | -5
negative five | -5
it is −5 outside | it is minus five outside
it is -5 outside | it is minus five outside
−40 | -40
minus 40 degrees | -40°
-0.5 | minus zero point five
10 − 5 | ten minus five
from -10 to -5 | from minus ten to minus five
(-5) | minus five
10 o'clock | ten o'clock
10 o’clock | ten o'clock
10 o' clock | 10 o clock
10:00 | ten o'clock
10:00 a.m. | ten am
10:05 | ten oh five
10:30 | ten thirty
3.45pm | three forty five p.m.
3:45 p.m. | three forty five pm
9:05 | nine o five
20mm | 20 mm
20mm | twenty millimetres
20 mm | twenty millimeters
twenty mm | twenty millimeters
a 20 mm lens | a twenty millimetre lens
5km | five kilometres
5 kg | five kilograms
five kilos | 5 kg
5 m tall | five metres tall
10 lbs | ten pounds
6 ft | six feet
30 cm | thirty centimeters
250 ml | two hundred and fifty millilitres
2 l | two litres
100 g | one hundred grams
60 mph | sixty miles per hour
100 km/h | one hundred kilometres per hour
16 kHz | sixteen kilohertz
20°C | twenty degrees Celsius
70 °F | seventy degrees Fahrenheit
40° | 40 degrees
5 min | five minutes
50% | fifty percent
50 % | fifty per cent
3.5% | three point five percent
-5% | minus five percent
3.5 | three point five
0.05 | zero point zero five
3.14159 | three point one four one five nine
.5 | 0.5
0.5 | zero point five
one and a half | 1.5
1½ | one and a half
2 1/2 | two and a half
3/4 | three quarters
¾ | three fourths
1/2 | one half
1/4 | one fourth
1/4 | one quarter
2/3 | two thirds
1/3 | one third
2 3/4 | two and three quarters
1.2.3 | one point two point three
the 21st | the twenty-first
the 1st | the first
the 2nd | the second
the 3rd | the third
the 11th | the eleventh
the 12th | the twelfth
the 20th | the twentieth
the 112th | the one hundred and twelfth
the 1,000th | the thousandth
21st century | twenty first century
1999 | nineteen ninety-nine
1905 | nineteen oh five
1969 | nineteen sixty nine
2010 | twenty ten
2005 | two thousand and five
2021 | twenty twenty one
the 1980s | the nineteen eighties
the 60s | the sixties
in the 1800s | in the eighteen hundreds
'90s music | nineties music
19.99 | nineteen point nine nine
between one hundred and two hundred | between 100 and 200
between 1 and 2 million | between one and two million
$.50 | fifty cents
$5.5 | $5.50
the 1990's | the nineteen nineties
four two seven | 427
4 2 7 | 427
nine one one | 9-1-1
five five five oh one two three | 555-0123
double oh seven | 007
double seven | 77
zero zero seven | 007
one two three | 1, 2, 3
room 101 | room one oh one
Johnson & Johnson | Johnson and Johnson
AT&T | AT and T
1+1=2 | one plus one equals two
#5 | number five
No. 5 | number 5
J.K. Rowling | JK Rowling
J. K. Rowling | J.K. Rowling
U.S.A. | USA
U.S.A | USA
Washington, D.C. | Washington DC
seven a.m. | 7 AM
seven a.m. | 7am
9 P.M. | nine pm
e.g. this | eg this
i.e. that | ie that
the U.N. said | the UN said
can’t stop | can't stop
Hmm, it is 5 | it is five
mm, yes | yes
mp3 | MP three
CO2 | CO two
10-20 people | 10 20 people
twenty-twenty | 2020
10–20 | 10-20
I have one | I have 1
one of them | 1 of them
oh one two | 012
""".strip().splitlines()
EQUAL = [tuple(part.strip() for part in line.split("|")) for line in EQUAL]

DIFFERENT = """
10 million people | 10 billion people
10 million | ten thousand
it costs $10 million | it costs $10 billion
it costs $10 | it costs £10
$10 | €10
£10 | 10
$10 | 10
50 cents | 50 dollars
50 cents | 50 pence
$5.50 | $5.05
$5.50 | $550
$5.50 | five dollars fifteen
$0.50 | €0.50
-40 | 40
it is -5 outside | it is 5 outside
it is −5 outside | it is 5 outside
minus forty | forty
-5 | - 5
-0.5 | 0.5
-$5 | $5
10-20 | 10 -20
007 | 7
555-0123 | 555-123
0123 | 123
10:05 | 10:5
10:05 | 10:50
10:30 | 10:13
10:00 | 10:10
ten o'clock | eleven o'clock
ten o'clock | a hundred o'clock
a 20 mm lens | a 20 lens
20 mm | 20 cm
20 mm | 20 m
5 kg | 5 g
5 km | 5 miles
100 ml | 100 l
20°C | 20°F
5 min | 5 hours
50% | 50
50% | 15%
3.5 | 35
3.5 | 3.05
0.5 | 5
1.50 | 1.05
3/4 | 1/4
3/4 | 34
2/3 | 2/5
1/2 | 1/3
one and a half | one half
21st | 21
21st | 22nd
first | one
60s | 60
1980s | 1990s
1999 | 1990
1905 | 1950
nineteen sixty nine | 1996
427 | 472
four two seven | four two eight
no one knows | no 1 knows
no one | one
everyone | every 1
hundreds of people | a hundred people
hundreds of people | 100s people
2 hundred | 2 hundreds
1 million | 1 mm
10:05 | 10.05
ten past five | 10 5
5,000 | 5 000 000
thousands | 1000
several hundred | several 100
fourteen | forty
fifteen | fifty
thirteen | thirty
one hundred and five | one hundred and fifteen
one thousand | one million
1000000 | 100000
1 000 000 | 1 000
a million | a billion
2 million | 2.5 million
10k | 10
Johnson & Johnson | Johnson Johnson
J.K. Rowling | J.R. Rowling
U.S.A. | U.K.
7 a.m. | 7 p.m.
D.C. | AC
double seven | seven
oh my | zero my
the second | 2
1+1 | 1-1
mp3 | mp4
plus five | minus five
""".strip().splitlines()
DIFFERENT = [tuple(part.strip() for part in line.split("|")) for line in DIFFERENT]


def test_there_are_enough_pairs():
    assert len(EQUAL) + len(DIFFERENT) >= 200


@pytest.mark.parametrize("one, other", EQUAL)
def test_one_amount_written_differently_is_no_error(one, other):
    assert scored_tokens(one) == scored_tokens(other)
    assert error_counts(f"so it was {one} then", f"So it was {other}, then.")[0] == 0


@pytest.mark.parametrize("one, other", DIFFERENT)
def test_different_amounts_are_errors(one, other):
    assert error_counts(one, other)[0] >= 1 and error_counts(other, one)[0] >= 1
    assert error_counts(f"so it was {one} then", f"So it was {other}, then.")[0] >= 1


@pytest.mark.parametrize(
    "text, answer",
    [
        ("minus forty", "-40"),
        ("It is −40 there", "minus forty"),
        ("It was Simon and Garfunkel.", "Simon & Garfunkel"),
        ("seven a.m.", "7 AM"),
        ("Washington, D.C.", "DC"),
        ("J.K. Rowling", "JK Rowling"),
        ("double oh seven", "007"),
        ("call 5550123", "555-0123"),
        ("call five five five oh one two three", "555-0123"),
        ("at ten oh five", "10:05"),
        ("at 10:05 a.m.", "10:05"),
        ("1 000 000 people", "1000000"),
        ("1,2,3", "2"),
        ("one million", "1,000,000"),
        ("10 million people", "ten million"),
        ("it costs $10", "10"),
        ("it costs $10", "ten dollars"),
        ("five dollars fifty", "$5.50"),
        ("in nineteen sixty-nine", "1969"),
        ("ten minus five is five", "5"),
        ("The answer is one.", "1"),
        ("it was the 21st", "twenty-first"),
        ("a 20mm lens", "20 millimetres"),
        ("three quarters", "3/4"),
        ("three fourths", "three quarters"),
        ("four quarters", "quarters"),
        ("50%", "fifty percent"),
        ("50%", "50"),
        ("U.S.", "US"),
    ],
)
def test_answers_that_were_given_in_another_form(text, answer):
    assert contains_any(text, [answer])


@pytest.mark.parametrize(
    "text, answer",
    [
        ("it is 40 degrees", "-40"),
        ("it is -40 degrees", "40"),
        ("minus forty", "forty"),
        ("seven", "007"),
        ("007", "7"),
        ("555-123", "555-0123"),
        ("10:5", "10:05"),
        ("no one knows", "1"),
        ("any one", "one hundred"),
        ("10 million people", "10"),
        ("10 million people", "10 billion"),
        ("$10 million", "$10"),
        ("it costs 10", "$10"),
        ("it costs £10", "$10"),
        ("in nineteen sixty-nine", "69"),
        ("four two seven", "427 8"),
        ("four two seven", "42"),
        ("3.5", "5"),
        ("3.5", "3"),
        ("21st", "21"),
        ("1 000 000", "1"),
        ("a 20 mm lens", "20 cm"),
        ("three quarters", "1/4"),
        ("Simon Garfunkel", "Simon & Garfunkel"),
    ],
)
def test_answers_of_another_amount(text, answer):
    assert not contains_any(text, [answer])


def test_an_answer_asked_for_at_the_end_is_a_whole_number():
    assert contains_answer("two plus ten is twelve", "12", last_words=3)
    assert not contains_answer("it is 12", "2") and not contains_answer("it is 12", "1")
    assert not contains_answer("it is minus twelve", "12")


def test_pairs_hold_for_answers_as_for_errors():
    """Amounts in a sentence are found in any of their forms; the initials "I" and "A" may be words of their own."""
    for one, other in EQUAL:
        assert contains_any(f"so it was {one} then", [other]), (one, other)
    for one, other in DIFFERENT:
        assert not (contains_any(one, [other]) and contains_any(other, [one])), (one, other)
