// Everything that the shadowed sm_90 wrappers call.
#pragma once

#include "simt/async_proxy.h"
#include "simt/cluster.h"
#include "simt/hopper_misc.h"
#include "simt/mbarrier.h"
#include "simt/memory.h"
#include "simt/named_barrier.h"
#include "simt/tma.h"
#include "simt/wgmma.h"
