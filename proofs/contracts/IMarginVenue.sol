// SPDX-License-Identifier: MIT
pragma solidity >=0.8.4;

/// @title Spot, perp and option positions of margin accounts, as a protocol shows them
/// @notice The least that a protocol must answer for its positions to count in a cross-margin account. Prices are USD
///         with 8 decimals, times Unix seconds, sizes 1e-18 whole units, amounts base units of the token named beside
///         them. Nothing here is a mark: readers value positions by prices of their own.
/// @dev All reads are views, take gas that depends on nobody but the account asked about, and of one block never
///      contradict each other, so that a reader may pack those of many accounts into calls pinned to one block.
///      ERC-165: `supportsInterface(type(IMarginVenue).interfaceId)` is true.
///
///      What an account has here must not leave it sooner than `removalDelay` after it became pending, other than by a
///      loss or a fee of its own. Nobody but the account's controller may give it a position, or a debt.
interface IMarginVenue {
    /// @param kind 1 linear perp, 2 inverse perp, 3 European call, 4 European put
    /// @param state 1 live; 2 expired, and what it pays is not fixed yet; 3 expired, and `payout` is final. A perp is
    ///        always live: a venue that ends one closes its positions into balances.
    /// @param underlying the price it is about in ASCII, padded with zeros on the right, such as "ETH/USD"
    /// @param settlement the ERC-20 it pays in: a dollar, except for inverse perps, which pay in the underlying itself
    /// @param strike of options, 0 for perps
    /// @param expiry of options, 0 for perps
    /// @param payout base units of `settlement` per 1e18 of size, 0 until `state` is 3
    struct Instrument {
        uint8 kind;
        uint8 state;
        bytes32 underlying;
        address settlement;
        uint256 strike;
        uint64 expiry;
        uint256 payout;
    }

    /// @param instrument what it is in; each instrument occurs once in an account
    /// @param size positive long, negative short, never 0; whole units of the underlying, of an inverse perp US dollars
    /// @param entry perps: the average price it was opened at, weighted by size; for inverse perps the harmonic one, so
    ///        that `size * (1/entry - 1/price)` is what it has gained. Options: 0, a premium is paid when it is due.
    /// @param funding perps: what has accrued up to this block and is not in a balance yet, in `settlement`, positive
    ///        where the account receives it. Options: 0.
    struct Position {
        uint256 instrument;
        int256 size;
        uint256 entry;
        int256 funding;
    }

    /// @param amount what the account has in `token`, pending included
    /// @param pending the part of `amount` that is under a withdrawal request, however long ago it was made
    /// @param owed what the account owes the venue in `token`; it answers for it with all it has. One of `amount` and
    ///        `owed` is 0.
    struct Balance {
        address token;
        uint256 amount;
        uint256 pending;
        uint256 owed;
    }

    /// @notice A position was opened, changed or closed (`size` 0). Funding that accrues is no change.
    event PositionChanged(bytes32 indexed account, uint256 indexed instrument, int256 size, uint256 entry);

    /// @notice A balance changed, or how much of it is pending or owed.
    event BalanceChanged(
        bytes32 indexed account, address indexed token, uint256 amount, uint256 pending, uint256 owed
    );

    event InstrumentListed(
        uint256 indexed instrument,
        uint8 kind,
        bytes32 underlying,
        address settlement,
        uint256 strike,
        uint64 expiry
    );

    /// @notice What an expired option pays is fixed, in base units of its settlement per 1e18 of size.
    event InstrumentSettled(uint256 indexed instrument, uint256 payout);

    /// @notice What all positions in a perp have accrued changed at once: funding was paid, or its rate is another.
    event FundingChanged(uint256 indexed instrument);

    event Paused(bool paused);

    /// @return 1, the version of what this page says
    function marginVenueVersion() external view returns (uint256);

    /// @return seconds between a withdrawal request and its claim; it must not shrink for requests already made
    function removalDelay() external view returns (uint256);

    /// @return whether positions cannot be closed or balances not withdrawn now; what is owed stands all the same
    function paused() external view returns (bool);

    /// @return the most positions that an account may have, at most 256. It must never shrink.
    function maxPositions() external view returns (uint256);

    /// @notice Up to `count` positions of an account, from the one numbered `from` on.
    /// @return total how many it has at this block
    /// @return page min(count, total - from) of them, none where `from` is not below `total`; the order is the venue's
    function positionsOf(bytes32 account, uint256 from, uint256 count)
        external
        view
        returns (uint256 total, Position[] memory page);

    /// @return every token in which the account has or owes something, each once, at most 16
    function balancesOf(bytes32 account) external view returns (Balance[] memory);

    /// @notice Terms never change once listed, but for `state` and `payout`. Reverts for one that was never listed.
    function instrument(uint256 id) external view returns (Instrument memory);

    function supportsInterface(bytes4 interfaceId) external view returns (bool);
}
