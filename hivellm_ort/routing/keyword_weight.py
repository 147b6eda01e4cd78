"""Weights of keywords: low for everyday English words, higher for technical terms, highest for phrases."""

from __future__ import annotations

from enum import Enum

from hivellm_ort.routing.words import Phrase

__all__ = ["KeywordWeight", "weight_of"]


class KeywordWeight(Enum):
    """Kinds of keywords. The value is the weight."""

    PHRASE = 1.5
    """Several words, not all of them everyday words; symbols are no words."""
    TERM = 1.0
    """Any other single word."""
    AMBIGUOUS = 0.6
    """A word that is a term and plain English too, such as `table`; also two letters, and bare symbols."""
    EVERYDAY_PHRASE = 0.3
    """Several everyday words, such as `how many`."""
    EVERYDAY = 0.2
    """A word of any English talk, such as `list`; also one letter, and small words of other languages."""

    @property
    def everyday(self) -> bool:
        """Whether the weight counts towards the limit for all everyday words."""
        return self in (KeywordWeight.EVERYDAY, KeywordWeight.EVERYDAY_PHRASE)


def _word_set(text: str) -> frozenset[str]:
    return frozenset(text.split())


_EVERYDAY = _word_set(
    """
    a about above after again all also always am an and another any are around as ask at away back bad be because
    been before being below best better between big both but by call can change come could day describe
    definition did different difference display do does doing done down each easy either else end ever every
    example explain false far fetch few find first fix follow following for from full get give go good great had
    has have having he help her here high higher highest him his how i if in into is it its just keep kind know
    large last least left less let like line list little long look lot low lower lowest made main make man many
    may me mean meaning meanings means might more most much must my name need never new next no nor not nothing
    now number of off often old older oldest on once one only open or other our out over own part people per
    place please possible problem put question read real rest right run said same say search see send set shall
    she short should show simple since small so some something start still stop such sum take tell text than
    that the their them then there these they thing things think this those thus time to today together told too
    top total true try turn two under until up upon us use used using very want was way we well were what when
    where whether which while who whom whose why will with within without word words work would write wrong year
    yes yet you young younger youngest your
    da de del der die du el en es est et fr il la le les o os pt que se un una une y
    """
)
_AMBIGUOUS = _word_set(
    """
    access account action add address agent alert analyse analysis analytics analyze answer api array
    average base block board bound branch bug business call card case cell chain chart check class clean clear
    client code column columns command common compare component condition configuration connect contact
    content context control convert copy correct count country create currency customer customers cut data date
    default delete detect detection document draw drop edge edit element entity entries entry error
    errors event events exception extract extraction feature field file files filter filtering flow
    folder form format frame function functions generate graph group history image import index insert interface
    invoice item items join key language letter level library limit link links load log logs loop machine map
    match maximum memory message method minimum missing mode model module month monitor move
    network node note object objects operation option order ordered orders organization package page
    password path pattern permission person phone pick plan plot point policy port
    post present price print process product products profile program project property provider query
    range rank rate record records reference relation relationship relationships remove repair repeat replace
    report reports request resource response result results return review role root rule rules sales sample
    save schema score scope script security select sentence series server service session share sheet shop
    sign sort sorted source space spell split stack state statement station statistics status step store stream
    string strings structure style subject summary support swift switch syntax system table tables tag tags task
    term test theme thread ticket title token tool tools trace track train translate translation tree type types
    unit update usage user users valid validate validation value values variable version view wait watch week
    window
    """
)


def weight_of(phrase: Phrase) -> KeywordWeight:
    """Return the weight of a phrase, independent of the candidates."""
    words = [word for word in phrase.words if any(map(str.isalnum, word))]
    if len(words) > 1:
        return KeywordWeight.EVERYDAY_PHRASE if all(map(_is_everyday, words)) else KeywordWeight.PHRASE
    if not words:
        return KeywordWeight.AMBIGUOUS
    (word,) = words
    if _is_everyday(word):
        return KeywordWeight.EVERYDAY
    return KeywordWeight.AMBIGUOUS if word in _AMBIGUOUS or _is_short(word, 2) else KeywordWeight.TERM


def _is_everyday(word: str) -> bool:
    return word in _EVERYDAY or _is_short(word, 1)


def _is_short(word: str, length: int) -> bool:
    # ASCII only: an ideograph is a whole word, and `c#` is a name.
    return len(word) <= length and word.isascii() and word.isalnum()
