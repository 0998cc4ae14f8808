# ccache, where it is installed, makes rebuilds of unchanged sources free.
find_program(TOKCORE_CCACHE ccache)
if(TOKCORE_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${TOKCORE_CCACHE})
endif()
