# pragma version ==0.4.3
"""
@title SequencerFeed
@license MIT
@notice Tells whether a rollup's sequencer is up, as Chainlink's L2 uptime feeds do; its owner says so. For devnets only.
@dev The answer is 0 while the sequencer is up and 1 while it is down; `startedAt` is when that began.
"""

event AnswerUpdated:
    current: indexed(int256)
    roundId: indexed(uint256)
    updatedAt: uint256

owner: public(address)
_round: uint80
_answer: int256
_started: uint256
_updated: uint256


@deploy
def __init__(started_at: uint256):
    """
    @param started_at since when the sequencer is up, in Unix seconds; 0 = unknown
    """
    assert started_at <= block.timestamp, "started_at is in the future"
    self.owner = msg.sender
    self._round = 1
    self._started = started_at
    self._updated = block.timestamp


@external
def setAnswer(answer: int256):
    """
    @notice Say that the sequencer is up (0) or down (1) from now on; saying it again changes nothing but `updatedAt`.
    """
    assert msg.sender == self.owner, "not the owner"
    assert answer == 0 or answer == 1, "answer: 0 or 1 expected"
    if answer != self._answer:
        self._round += 1
        self._answer = answer
        self._started = block.timestamp
    self._updated = block.timestamp
    log AnswerUpdated(current=answer, roundId=convert(self._round, uint256), updatedAt=block.timestamp)


@external
@view
def latestRoundData() -> (uint80, int256, uint256, uint256, uint80):
    """
    @return roundId, answer, startedAt, updatedAt, answeredInRound; times in Unix seconds
    """
    return self._round, self._answer, self._started, self._updated, self._round


@external
@view
def decimals() -> uint8:
    return 0


@external
@view
def description() -> String[64]:
    return "L2 Sequencer Uptime Status Feed"


@external
@view
def version() -> uint256:
    return 1
