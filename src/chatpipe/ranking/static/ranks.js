// Ranks of the answers in the shown order (1 is the best, null has no place), and their words.

export const worst = (ranks) => Math.max(0, ...ranks.filter((rank) => rank !== null));
export const unranked = (ranks) => ranks.flatMap((rank, i) => (rank === null ? [i + 1] : []));
export const atPlace = (ranks, place) => ranks.flatMap((rank, i) => (rank === place ? [i + 1] : []));

/** The ranks after answer `i` (counted from 0) got another one; if a place becomes empty, later places move up. */
export function withRank(ranks, i, rank) {
  const changed = ranks.with(i, rank);
  if (ranks[i] === null || changed.includes(ranks[i])) return changed;
  return changed.map((other) => (other !== null && other > ranks[i] ? other - 1 : other));
}

/** The next place for an answer, or none for one that has a place. */
export const placed = (ranks, i) => withRank(ranks, i, ranks[i] === null ? worst(ranks) + 1 : null);

/** The place of the answer that was placed last. */
export function tied(ranks, i) {
  const others = withRank(ranks, i, null);
  return withRank(others, i, Math.max(1, worst(others)));
}

export const ordinal = (n) => n + (["st", "nd", "rd"][n - 1] ?? "th"); // n is at most 9
export const spoken = (numbers) => (numbers.length < 2 ? numbers.join("") : `${numbers.slice(0, -1).join(", ")} and ${numbers.at(-1)}`);

export function whatIsLeft(ranks) {
  const missing = unranked(ranks);
  if (missing.length > 3) return `${missing.length} are not ranked.`;
  return missing.length ? `Not ranked: ${spoken(missing)}.` : "Enter submits.";
}
