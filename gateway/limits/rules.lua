-- Read the rules of one call, and write back those that changed. Every script begins with this.
--
-- KEYS     the rules' keys, then those of the reservations.
-- ARGV[1]  MessagePack: {rules, ...}, the rest being the script's own.
--          A rule: {form, unit, drain, room, limit, width}, see base.py.
-- Times are in microseconds since the epoch by this server's clock, the only one that counts;
-- a bucket's level and room in the rule's own unit; counts, amounts and slots are numbers of
-- requests or tokens. All are whole numbers below 2^53, which Lua's doubles hold exactly.
--
-- Kept under a rule's key: a bucket's 'level:since when:unit:drain:when it was empty last', a window's
-- 'count:its beginning', or the sorted set of leases, each with the time it ends. Everything expires.

local BUCKET, WINDOW, SLOTS = 0, 1, 2
local DAY = 86400000000
local LEASE = 30000000
local SLOT_WAIT = 1000000
local LONGER = 1000 -- milliseconds that a key outlives its meaning
local MOST = 1000 -- arguments of one command: Lua's stack is not endless

local input = cmsgpack.unpack(ARGV[1])
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]

-- The day a month began with, by days since the epoch (H. Hinnant, "chrono-compatible low-level
-- date algorithms", civil_from_days).
local function month_of(day)
  local z = day + 719468
  local of_era = z - math.floor(z / 146097) * 146097
  local year = math.floor((of_era - math.floor(of_era / 1460) + math.floor(of_era / 36524)
    - math.floor(of_era / 146096)) / 365)
  local of_year = of_era - (365 * year + math.floor(year / 4) - math.floor(year / 100))
  local month = math.floor((5 * of_year + 2) / 153)
  return day - (of_year - math.floor((153 * month + 2) / 5))
end

local function window(width, at)
  if width > 0 then
    local start = at - at % width
    return start, start + width
  end
  local first = month_of(math.floor(at / DAY))
  return first * DAY, month_of(first + 31) * DAY
end

local function in_parts(list, call)
  for first = 1, #list, MOST do
    call(unpack(list, first, math.min(first + MOST - 1, #list)))
  end
end

-- `stored` is by key, as one reservation may be named more than once in a call.
local rules, stored, kept = {}, {}, {}
in_parts(KEYS, function(...)
  for _, value in ipairs(redis.call('MGET', ...)) do
    table.insert(kept, value) -- of a sorted set: false
  end
end)
for i, given in ipairs(input[1]) do
  local rule = {
    key = KEYS[i], form = given[1], unit = given[2], drain = given[3], room = given[4],
    limit = given[5],
  }
  local first, second, unit, drain, emptied =
    string.match(kept[i] or '', '^(%d+):(%d+):?(%d*):?(%d*):?(%d*)$')
  first, second = tonumber(first) or 0, tonumber(second) or 0
  if rule.form == BUCKET then
    unit, drain = tonumber(unit) or rule.unit, tonumber(drain) or rule.drain
    rule.level = math.max(0, first - math.max(0, now - second) * drain)
    if unit ~= rule.unit or drain ~= rule.drain then
      -- Its limit changed: as much is used as was, but of a lower limit no more than all of it.
      rule.level = math.min(math.ceil(rule.level * (rule.unit / unit)), rule.room)
    end
    emptied = tonumber(emptied) or 0
    if rule.level == 0 then
      emptied = now
    elseif emptied > now then
      emptied = 0 -- a clock that went back must not keep what is given back from now on
    end
    rule.emptied = emptied
  elseif rule.form == WINDOW then
    -- A clock that went back must not empty what is counted.
    rule.start, rule.ends = window(given[6], math.max(now, second))
    rule.count = second == rule.start and first or 0
  else
    redis.call('ZREMRANGEBYSCORE', rule.key, '-inf', now)
    rule.count = redis.call('ZCARD', rule.key)
    rule.leases = {}
  end
  rules[i] = rule
end
for i = #rules + 1, #KEYS do
  stored[KEYS[i]] = kept[i]
end

-- What is left of a rule, and how long until all of it is.
local function level(rule)
  if rule.form == BUCKET then
    local left = math.floor((rule.room - rule.level) / rule.unit)
    return {math.max(0, left), math.ceil(rule.level / rule.drain)}
  elseif rule.form == WINDOW then
    return {math.max(0, rule.limit - rule.count), rule.ends - now}
  end
  return {math.max(0, rule.limit - rule.count), 0}
end

-- A request's leases: as many members as it has slots.
local function members(id, slots)
  local list = {id}
  for slot = 2, slots do
    list[slot] = id .. ':' .. slot
  end
  return list
end

local function write()
  for _, rule in ipairs(rules) do
    if rule.form == SLOTS then
      in_parts(rule.leases, function(...)
        redis.call('ZADD', rule.key, ...)
      end)
      if #rule.leases > 0 then
        redis.call('PEXPIRE', rule.key, LEASE / 1000 + LONGER)
      end
    elseif rule.changed and rule.form == BUCKET then
      local lasts = math.ceil(rule.level / rule.drain / 1000) + LONGER
      local level = string.format('%.0f:%.0f:%.0f:%.0f:%.0f', rule.level, now, rule.unit, rule.drain,
        rule.emptied)
      redis.call('SET', rule.key, level, 'PX', string.format('%.0f', lasts))
    elseif rule.changed then
      local lasts = math.ceil((rule.ends - now) / 1000) + LONGER
      redis.call('SET', rule.key, string.format('%.0f:%.0f', rule.count, rule.start),
        'PX', string.format('%.0f', lasts))
    end
  end
end
