-- What is left of each rule. Returns MessagePack: {what is left, microseconds until all is}.

local levels = {}
for i, rule in ipairs(rules) do
  levels[i] = level(rule)
end
return cmsgpack.pack(levels)
