-- Hold the slots of live requests for another lease, lost ones too, remember their reservations, and say how
-- many workers there are.
--
-- KEYS      the rules' keys, then the reservations', then the set of workers.
-- input[2]  claims: {reservation's index, id, lines}; a line: {rule's index, slots}
-- input[3]  how long a reservation is remembered, in milliseconds.
-- input[4]  this worker's id.
-- Returns the number of workers heard of within a lease.

for _, claim in ipairs(input[2]) do
  local reservation, id, lines = unpack(claim)
  redis.call('PEXPIRE', KEYS[reservation], input[3])
  for _, line in ipairs(lines) do
    for _, member in ipairs(members(id, line[2])) do
      table.insert(rules[line[1]].leases, string.format('%.0f', now + LEASE))
      table.insert(rules[line[1]].leases, member)
    end
  end
end
write()
local workers = KEYS[#KEYS]
redis.call('ZREMRANGEBYSCORE', workers, '-inf', now)
redis.call('ZADD', workers, string.format('%.0f', now + LEASE), input[4])
redis.call('PEXPIRE', workers, LEASE / 1000 + LONGER)
return redis.call('ZCARD', workers)
