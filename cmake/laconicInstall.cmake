# Headers, targets and the files that let `find_package(laconic)` work. Component `laconic`: all but the
# program and what is compiled.
include(CMakePackageConfigHelpers)
set(package_dir ${CMAKE_INSTALL_DATADIR}/cmake/laconic)

install(DIRECTORY include/laconic DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT laconic)
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR} COMPONENT laconic)

# One export set a component, so that the core can be used where the dependencies of the others are missing.
foreach(part laconic laconic_io laconic_speech laconic_mpi)
  install(TARGETS ${part} EXPORT ${part}Targets)
  install(EXPORT ${part}Targets NAMESPACE laconic:: DESTINATION ${package_dir} COMPONENT laconic)
endforeach()

# What is compiled has components of its own: whoever installs them must have built them.
foreach(part laconic_compiled laconic_cuda laconic_recognizer)
  if(TARGET ${part})
    install(TARGETS ${part} EXPORT ${part}Targets COMPONENT ${part} EXCLUDE_FROM_ALL)
    install(EXPORT ${part}Targets NAMESPACE laconic:: DESTINATION ${package_dir} COMPONENT ${part} EXCLUDE_FROM_ALL)
  endif()
endforeach()

# The C interface: a shared library, which needs no export of what it is made of, and its pkg-config file.
if(TARGET laconic_c)
  install(TARGETS laconic_c EXPORT laconic_cTargets COMPONENT laconic_c EXCLUDE_FROM_ALL)
  install(EXPORT laconic_cTargets NAMESPACE laconic:: DESTINATION ${package_dir} COMPONENT laconic_c EXCLUDE_FROM_ALL)
  configure_file(cmake/laconic_c.pc.in laconic_c.pc @ONLY)
  install(FILES ${CMAKE_CURRENT_BINARY_DIR}/laconic_c.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT laconic_c
          EXCLUDE_FROM_ALL)
endif()

configure_package_config_file(cmake/laconicConfig.cmake.in laconicConfig.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(laconicConfigVersion.cmake COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/laconicConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/laconicConfigVersion.cmake
              cmake/laconicDependencies.cmake
        DESTINATION ${package_dir} COMPONENT laconic)
