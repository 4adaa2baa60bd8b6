-- End claims: charge what was used instead of what was reserved, and free the slots.
--
-- input[2]  settlements: {reservation's index in KEYS, id, close, lines}
--           a line: {rule's index, reserved, used}; of slots, reserved is how many.
-- input[4]  how long a reservation is remembered, in milliseconds.
--
-- The reservation is the token: the first settlement takes it away, and any other finds none.
-- A settlement that needs none leaves a mark in its place instead.

local SETTLE, UNDO, CHARGE = 0, 1, 2
local MARK = '-'

local function shift(rule, by, since)
  if rule.form == BUCKET then
    if by < 0 and since < rule.emptied then
      return -- it has drained, and what is in the bucket now is of others
    end
    rule.level = math.max(0, rule.level + by * rule.unit)
    rule.emptied = rule.level > 0 and rule.emptied or now
  elseif since >= rule.start then -- else its window is over, and with it what it counted
    rule.count = math.max(0, rule.count + by)
  end
  rule.changed = true
end

for _, settlement in ipairs(input[2]) do
  local place, id, close, lines = unpack(settlement)
  local reservation = KEYS[place]
  local since = stored[reservation]
  local applies = since ~= MARK and (since or close == CHARGE)
  for _, line in ipairs(lines) do
    local rule = rules[line[1]]
    if rule.form == SLOTS then
      in_parts(members(id, line[2]), function(...)
        rule.count = rule.count - redis.call('ZREM', rule.key, ...)
      end)
    elseif applies then
      shift(rule, line[3] - line[2], tonumber(since) or now)
    end
  end
  if close == UNDO or close == CHARGE then
    redis.call('SET', reservation, MARK, 'PX', input[4])
    stored[reservation] = MARK
  elseif since and since ~= MARK then
    redis.call('DEL', reservation)
    stored[reservation] = false
  end
end
