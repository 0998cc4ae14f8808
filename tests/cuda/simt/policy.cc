#include "simt/policy.h"

namespace tokcore::simt {

Policy& policy() {
  static Policy instance;
  return instance;
}

}  // namespace tokcore::simt
