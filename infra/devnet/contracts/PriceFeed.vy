# pragma version ==0.4.3
"""
@title PriceFeed
@license MIT
@notice A price feed with the read interface of a Chainlink aggregator whose owner sets the answer. For devnets only.
@dev Bounds answers as an OCR aggregator does. `aggregator` names the contract itself, since there is no proxy.
"""

event AnswerUpdated:
    current: indexed(int256)
    roundId: indexed(uint256)
    updatedAt: uint256

# A Chainlink proxy puts its phase above the 64-bit round of the aggregator.
PHASE: constant(uint80) = 2**64

struct Round:
    answer: int256
    updatedAt: uint256

owner: public(address)
decimals: public(immutable(uint8))
minAnswer: public(immutable(int192))
maxAnswer: public(immutable(int192))
description: public(String[64])
_round: uint80
_rounds: HashMap[uint80, Round]


@deploy
def __init__(description_: String[64], decimals_: uint8, answer: int256, min_answer: int192, max_answer: int192):
    """
    @param answer initial price in units of 10**-decimals
    """
    assert min_answer > 0 and min_answer < max_answer, "answer bounds"
    self.owner = msg.sender
    self.description = description_
    decimals = decimals_
    minAnswer = min_answer
    maxAnswer = max_answer
    self._set(answer, min_answer, max_answer)


@external
def setAnswer(answer: int256):
    """
    @notice Start a new round now with this answer.
    """
    assert msg.sender == self.owner, "not the owner"
    self._set(answer, minAnswer, maxAnswer)


@external
def transferOwnership(to: address):
    assert msg.sender == self.owner, "not the owner"
    self.owner = to


@external
@view
def latestRoundData() -> (uint80, int256, uint256, uint256, uint80):
    """
    @return roundId, answer, startedAt, updatedAt, answeredInRound; times in Unix seconds
    """
    return self._data(self._round)


@external
@view
def getRoundData(roundId: uint80) -> (uint80, int256, uint256, uint256, uint80):
    return self._data(roundId)


@external
@view
def latestAnswer() -> int256:
    return self._rounds[self._round].answer


@external
@view
def latestTimestamp() -> uint256:
    return self._rounds[self._round].updatedAt


@external
@view
def latestRound() -> uint256:
    return convert(self._round, uint256)


@external
@view
def aggregator() -> address:
    return self


@external
@view
def version() -> uint256:
    return 4


@internal
@view
def _data(round: uint80) -> (uint80, int256, uint256, uint256, uint80):
    entry: Round = self._rounds[round]
    assert entry.updatedAt != 0, "No data present"
    return round, entry.answer, entry.updatedAt, entry.updatedAt, round


@internal
def _set(answer: int256, low: int192, high: int192):
    assert answer >= convert(low, int256) and answer <= convert(high, int256), "answer out of bounds"
    round: uint80 = max(self._round, PHASE) + 1
    self._round = round
    self._rounds[round] = Round(answer=answer, updatedAt=block.timestamp)
    log AnswerUpdated(current=answer, roundId=convert(round, uint256), updatedAt=block.timestamp)
