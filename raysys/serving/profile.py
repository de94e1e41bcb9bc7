"""What is known of a user, each statement with its evidence."""

from __future__ import annotations

from pydantic import BaseModel, Field

from raysys.features.live import LiveFeatures


class Favourite(BaseModel):
    """A value of a catalogue column that the user comes back to."""

    name: str
    affinity: float = Field(
        description="Share of the user's decayed purchases, or of what else is counted, 0 to 1."
    )
    orders: int | None = Field(
        description="Evidence: orders it was in; null where the bundle counts not purchases alone."
    )
    touches: int | None = Field(
        None,
        description="Evidence instead: how often it was looked at, carted or bought.",
    )
    last_days_ago: float = Field(description="Evidence: days since the last of them.")


class RecentItem(BaseModel):
    """An item of the user's history."""

    item_id: str
    title: str | None


class Value(BaseModel):
    """What the user is worth, as far as the log tells."""

    n_orders: int | None = Field(
        description="Null where the bundle counts not purchases alone: see n_touches."
    )
    n_touches: int = Field(
        0,
        description="How often anything of the user was counted: views and carts too.",
    )
    recency_days: float | None = Field(
        description="Days since the last order; without n_orders since the last touch."
    )
    order_interval_days: float | None = Field(description="Usual time between orders.")
    last_seen: int | None = Field(description="UTC ms.")
    overdue: float | None = Field(description="Recency ÷ interval; above 1: later than usual.")


class Profile(BaseModel):
    """One user: value, interests by catalogue column, and the newest items."""

    user_id: str
    as_of: int = Field(description="UTC ms at which this was read.")
    value: Value
    interests: dict[str, list[Favourite]] = Field(description="By column, strongest first.")
    recent_items: list[RecentItem]
    bundle: str


def profile_of(features: LiveFeatures, user_id: str, timestamp: int, bundle: str) -> Profile:
    """The profile of a known user at a moment.

    Raises:
        KeyError: nothing is known of this user.
    """
    user = features.user_number(user_id)
    if user < 0:
        raise KeyError(user_id)
    facts = features.profile(user, timestamp)
    recency, interval = facts["recency_days"], facts["order_interval_days"]
    late = recency / interval if recency is not None and interval else None
    catalogue = features.catalogue
    recent = [catalogue.row(int(item)) for item in features.history(user, 10)]
    return Profile(
        user_id=user_id,
        as_of=timestamp,
        value=Value(
            n_orders=facts["n_orders"],
            n_touches=facts["n_touches"],
            recency_days=recency,
            order_interval_days=interval,
            last_seen=facts["last_seen"],
            overdue=None if late is None else round(late, 2),
        ),
        interests={
            column: [Favourite(**found) for found in favourites]
            for column, favourites in facts["favourites"].items()
        },
        recent_items=[
            RecentItem(item_id=str(row["item_id"]), title=str(row["title"] or "") or None)
            for row in recent
        ],
        bundle=bundle,
    )
