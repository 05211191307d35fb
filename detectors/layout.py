"""Where each number stands in a series' state row. Every number is a float32.

After a change here or in channels.py, delete the compiled functions in __pycache__: they hold these constants
and notice only changes of their own file.
"""

from __future__ import annotations

from detectors.channels import N_CHANNELS, N_SLOTS

N_HORIZONS = 4
# One channel's numbers inside a series' state; for shares LOG_A and LOG_B hold the day's events and trials.
MU, SEEN, LOG_A, LOG_B, POOL = 0, 1, 2, 3, 4  # POOL: (evidence, its variance, its usual square) per horizon
LOCAL_MEAN, LOCAL_LOG_VAR, LOCAL_POOL, SEASON_XY, SEASON_XX, LAST, DELTA = 16, 17, 18, 19, 20, 21, 22
OUTBREAKS, COOLDOWN = 23, 24  # how often the channel broke out lately, windows until the next one counts
WIDTH = 25
HOURS = 24
PROFILE = N_SLOTS * WIDTH  # [HOURS, N_CHANNELS] mean residual of the hour, then [HOURS] windows seen
PROFILE_SEEN = PROFILE + HOURS * N_CHANNELS
HEAD = PROFILE_SEEN + HOURS  # numbers of the series as a whole
RUNS, RUN_BUCKETS = HEAD + 24, 12  # how often a silence reached 2^k windows
LEVELS, LEVEL_BUCKETS = RUNS + RUN_BUCKETS, 10  # windows behind a busy one, by recent rate; silent ones
RECENT, N_RECENT = LEVELS + 2 * LEVEL_BUCKETS, 30  # a ring of the newest counts, its place behind it
USUAL = RECENT + N_RECENT + 1  # mean rates of the windows before the last 10 and before the last 30
N_RECENT_SUMS = 4
SIDES = USUAL + 2  # usual square of each recent sum's deviation: [N_RECENT_SUMS] below, then above
EPISODES, EPISODE_LEVELS = SIDES + 2 * N_RECENT_SUMS, 10  # how often a recent sum left the usual that far
N_EPISODE_KINDS = 4  # the sums over 10 and over 30 windows, each below and above
EPISODE_PEAKS = EPISODES + N_EPISODE_KINDS * EPISODE_LEVELS  # levels that the present episode has reached
EXPOSED = EPISODE_PEAKS + N_EPISODE_KINDS  # windows in which there could have been one
WEEK, HOURS_OF_WEEK = EXPOSED + 1, 168  # what ln(1 + requests) is beyond the hour of the day's usual
WEEK_SEEN = WEEK + HOURS_OF_WEEK  # windows seen of each hour of the week, as fast as they were learned from
WEEK_LAST, WEEK_XY, WEEK_XX = (WEEK_SEEN + HOURS_OF_WEEK + i for i in range(3))
STATE_WIDTH = WEEK_XX + 1
WIDTH_BEFORE_WEEKS = WEEK  # of states written by versions up to 0.1 that knew no week
(
    H_SEEN,
    H_RATE,  # five running rates: 3, 10, 40 windows, two hours, a day
    H_DISPERSION,  # usual square of the count's deviation from each of them
    H_ZERO_RUN,
    H_ZERO_SHARE,
    H_ACTIVE,
    H_START_LEVEL,
    H_OUT_XY,
    H_OUT_XX,
    H_IN_XY,
    H_IN_XX,
    H_HOT,
    H_RELEARN,
    H_BUSY,
) = (HEAD + i for i in (0, 1, 6, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21))

Z_CLIP = 12.0  # no score is larger
