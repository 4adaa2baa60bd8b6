-- Decide claims in their order: each is granted on every rule, or changes nothing.
--
-- input[3]  claims: {reservation's index in KEYS, id, lines}; a line: {rule's index, amount}
-- input[4]  how long a reservation is remembered, in milliseconds.
-- Returns MessagePack: now, and for each claim {refused, wait, levels}: the line that refuses for longest,
-- 0 where all was granted; for how long; and {what is left, microseconds until all is} by line.

-- How long until a rule may grant an amount; 0: now. More than all there can be is granted when
-- all of it is there, and leaves a debt.
local function delay(rule, amount)
  if rule.form == BUCKET then
    local over = rule.level + math.min(amount * rule.unit, rule.room) - rule.room
    return over > 0 and math.ceil(over / rule.drain) or 0
  elseif rule.form == WINDOW then
    return rule.count + math.min(amount, rule.limit) > rule.limit and rule.ends - now or 0
  end
  return rule.count + amount > rule.limit and SLOT_WAIT or 0
end

local function take(rule, amount, id)
  if rule.form == BUCKET then
    rule.level = rule.level + amount * rule.unit
    rule.changed = true
  elseif rule.form == WINDOW then
    rule.count = rule.count + amount
    rule.changed = true
  else
    rule.count = rule.count + amount
    for _, member in ipairs(members(id, amount)) do
      table.insert(rule.leases, string.format('%.0f', now + LEASE))
      table.insert(rule.leases, member)
    end
  end
end

local answers = {}
for i, claim in ipairs(input[3]) do
  local place, id, lines = unpack(claim)
  local reservation = KEYS[place]
  local refused, wait = 0, 0
  for j, line in ipairs(lines) do
    local needs = delay(rules[line[1]], line[2])
    if needs > wait then
      refused, wait = j, needs
    end
  end
  -- What has a reservation was decided, or undone before it came here; it is not taken again.
  if refused == 0 and not stored[reservation] then
    for _, line in ipairs(lines) do
      take(rules[line[1]], line[2], id)
    end
    stored[reservation] = string.format('%.0f', now)
    redis.call('SET', reservation, stored[reservation], 'PX', input[4])
  end
  local levels = {}
  for j, line in ipairs(lines) do
    levels[j] = level(rules[line[1]])
  end
  answers[i] = {refused, wait, levels}
end
write()
return cmsgpack.pack({now, answers})
