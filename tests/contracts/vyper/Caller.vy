# pragma version ==0.4.3
"""
@title Caller
@license MIT
@notice Calls what it is told to, so that a contract sees a sender that did not sign the transaction.
"""
target: immutable(address)


@deploy
def __init__(target_: address):
    target = target_


@external
def forward(data: Bytes[1024]):
    raw_call(target, data)
