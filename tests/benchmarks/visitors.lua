-- Requests of many visitors behind a proxy: the user agents of a file in turn, and a client address of its own for each.
-- wrk calls init() once, and request() for each request. Heads are made ahead, so that making them costs no load.

local heads, number = {}, 0
local HEADS = 2048

function init(args)
   local agents = {}
   for line in io.lines(args[1]) do
      agents[#agents + 1] = line
   end
   for visitor = 0, HEADS - 1 do
      heads[visitor] = wrk.format("GET", nil, {
         ["Host"] = "www.example.com",
         ["User-Agent"] = agents[visitor % #agents + 1],
         ["Accept-Language"] = "en-US,en;q=0.5",
         ["X-Forwarded-For"] = string.format("203.0.%d.%d", math.floor(visitor / 250), visitor % 250),
         ["X-Forwarded-Proto"] = "https",
      })
   end
end

function request()
   number = (number + 1) % HEADS
   return heads[number]
end
